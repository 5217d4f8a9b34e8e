module github.com/fusedbn/batchnorm/bench/peers

go 1.26.0

require github.com/fusedbn/batchnorm v0.0.0

replace github.com/fusedbn/batchnorm => ../../
