module github.com/fusedbn/batchnorm/bench/peers/gopeers

go 1.26.0

require (
	github.com/fusedbn/batchnorm/bench/peers v0.0.0
	github.com/gomlx/gomlx v0.27.0
	github.com/nlpodyssey/spago v1.1.0
)

require (
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/go-logr/logr v1.4.3 // indirect
	github.com/google/flatbuffers v23.5.26+incompatible // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	golang.org/x/exp v0.0.0-20260218203240-3dfff04db8fa // indirect
	k8s.io/klog/v2 v2.140.0 // indirect
)

replace (
	github.com/fusedbn/batchnorm => ../../../
	github.com/fusedbn/batchnorm/bench/peers => ../
)
