//go:build mpi && cgo && !mpich

package mpi

// The paths are those of Debian's alternatives. mpicc, as CC, adds its own.

/*
#cgo linux,amd64 CFLAGS: -I/usr/include/x86_64-linux-gnu/mpi
#cgo linux,arm64 CFLAGS: -I/usr/include/aarch64-linux-gnu/mpi
#cgo linux,ppc64le CFLAGS: -I/usr/include/powerpc64le-linux-gnu/mpi
#cgo linux,riscv64 CFLAGS: -I/usr/include/riscv64-linux-gnu/mpi
#cgo linux,s390x CFLAGS: -I/usr/include/s390x-linux-gnu/mpi
#cgo LDFLAGS: -lmpi
*/
import "C"
