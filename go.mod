module github.com/fusedbn/batchnorm

go 1.23.0

require (
	github.com/klauspost/cpuid/v2 v2.3.0
	golang.org/x/sys v0.30.0
)
