module github.com/fusedbn/batchnorm/bench/peers

go 1.26.0

require github.com/fusedbn/batchnorm v0.0.0

require (
	github.com/klauspost/cpuid/v2 v2.3.0 // indirect
	golang.org/x/sys v0.30.0 // indirect
)

replace github.com/fusedbn/batchnorm => ../../
