//go:build purego || !(amd64 || arm64)

package batchnorm

// A build without assembly.

func detectSIMD() []Path { return nil }

func simdKernel(id int, a *kernelArgs) { panic("batchnorm: no assembly in this build") }

var turnsKernels []kernelPair

func simdTurns(id int, a, b *kernelArgs) { panic("batchnorm: no assembly in this build") }

func simdFence() {}

func simdActivation(id int) uintptr { panic("batchnorm: no assembly in this build") }

func simdChannels(id int, a *channelArgs) { panic("batchnorm: no assembly in this build") }
