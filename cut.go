package batchnorm

// watched, where a test has set it, gets the number of values of each call in which a
// goroutine can't be preempted: a kernel, a kernel on channels, copy and clear.
var watched func(kind string, values int)

const (
	watchKernel   = "kernel"
	watchChannels = "kernel on channels"
	watchCopy     = "copy"
	watchClear    = "clear"
)

// copyCut is copy in calls of at most maxCall values, so that the garbage collector is
// not held up.
func copyCut[T any](to, from []T) {
	n := min(len(to), len(from))
	for i := 0; i < n; i += maxCall {
		end := min(n, i+maxCall)
		if watched != nil {
			watched(watchCopy, end-i)
		}
		copy(to[i:end], from[i:end])
	}
}

// clearCut is clear in calls of at most maxCall values.
func clearCut[T any](t []T) {
	for i := 0; i < len(t); i += maxCall {
		end := min(len(t), i+maxCall)
		if watched != nil {
			watched(watchClear, end-i)
		}
		clear(t[i:end])
	}
}
