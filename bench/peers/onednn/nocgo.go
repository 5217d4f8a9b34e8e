//go:build !cgo

package main

import "github.com/fusedbn/batchnorm/bench/peers/peer"

func main() {
	peer.Missing("oneDNN is used through cgo, which is off or has no C compiler: apt-get install gcc libdnnl-dev")
}
