module github.com/fusedbn/batchnorm/examples/distributed

go 1.26.0

require (
	github.com/fusedbn/batchnorm v0.0.0
	github.com/fusedbn/batchnorm/examples/paper v0.0.0
	github.com/fusedbn/batchnorm/mpi v0.0.0
	github.com/schollz/progressbar/v3 v3.19.1
	golang.org/x/term v0.44.0
	gonum.org/v1/gonum v0.17.0
)

require (
	github.com/klauspost/cpuid/v2 v2.4.2 // indirect
	github.com/mitchellh/colorstring v0.0.0-20190213212951-d06e56a500db // indirect
	github.com/rivo/uniseg v0.4.7 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace (
	github.com/fusedbn/batchnorm => ../../
	github.com/fusedbn/batchnorm/examples/paper => ../paper
	github.com/fusedbn/batchnorm/mpi => ../../mpi
)
