//go:build mpi && cgo && mpich

package mpi

/*
#cgo linux,amd64 CFLAGS: -I/usr/include/x86_64-linux-gnu/mpich
#cgo linux,arm64 CFLAGS: -I/usr/include/aarch64-linux-gnu/mpich
#cgo linux,ppc64le CFLAGS: -I/usr/include/powerpc64le-linux-gnu/mpich
#cgo linux,riscv64 CFLAGS: -I/usr/include/riscv64-linux-gnu/mpich
#cgo linux,s390x CFLAGS: -I/usr/include/s390x-linux-gnu/mpich
#cgo LDFLAGS: -lmpich
*/
import "C"
