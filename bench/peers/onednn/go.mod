module github.com/fusedbn/batchnorm/bench/peers/onednn

go 1.26.0

require github.com/fusedbn/batchnorm/bench/peers v0.0.0

replace (
	github.com/fusedbn/batchnorm => ../../../
	github.com/fusedbn/batchnorm/bench/peers => ../
)
