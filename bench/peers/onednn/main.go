//go:build cgo

// Command onednn is batch normalization by oneDNN 2, through its C API.
package main

/*
#cgo LDFLAGS: -ldnnl -lgomp

#if !__has_include(<oneapi/dnnl/dnnl.h>)
#error "oneDNN is not installed: apt-get install libdnnl-dev"
#else
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <time.h>

#if DNNL_VERSION_MAJOR != 2 || DNNL_VERSION_MINOR < 3
#error "oneDNN is not of version 2.3 to 2.7, whose API this needs: apt-get install libdnnl-dev"
#endif

// A function, since Go can't see a macro.
static void *allocate(void) { return DNNL_MEMORY_ALLOCATE; }

// execute runs a primitive to its end and takes the time on this side, without
// the way from Go to C.
static dnnl_status_t execute(dnnl_primitive_t p, dnnl_stream_t s, int n, const dnnl_exec_arg_t *args, int64_t *ns) {
	struct timespec start, end;
	clock_gettime(CLOCK_MONOTONIC, &start);
	dnnl_status_t status = dnnl_primitive_execute(p, s, n, args);
	if (status == dnnl_success)
		status = dnnl_stream_wait(s);
	clock_gettime(CLOCK_MONOTONIC, &end);
	*ns = (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec;
	return status;
}
#endif
*/
import "C"

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

func main() {
	// The number of threads is a setting of OpenMP for the thread that calls.
	runtime.LockOSThread()
	v := C.dnnl_version()
	peer.Serve(peer.Peer{
		Name: fmt.Sprintf("oneDNN %d.%d.%d", v.major, v.minor, v.patch),
		New:  func(p peer.Problem, threads int) (peer.Runner, error) { return newRunner(p, threads) },
	})
}

type runner struct {
	problem peer.Problem
	engine  C.dnnl_engine_t
	stream  C.dnnl_stream_t

	forward, inference, backward call

	y, inferred, dx, dgamma, dbeta *memory
	memories                       []*memory
}

// call is a primitive with its arguments.
type call struct {
	primitive C.dnnl_primitive_t
	args      []C.dnnl_exec_arg_t
}

// memory is a tensor in the form of oneDNN.
type memory struct {
	handle C.dnnl_memory_t
	desc   C.dnnl_memory_desc_t
	plain  C.dnnl_memory_desc_t // in the form of the problem
	values int
}

// check panics if the call has failed; Serve turns the panic into an error.
func check(what string, status C.dnnl_status_t) {
	if status == C.dnnl_unimplemented {
		panic(peer.Unsupported("%s", what))
	}
	if status != C.dnnl_success {
		panic(fmt.Errorf("oneDNN: %s: status %d", what, status))
	}
}

func newRunner(p peer.Problem, threads int) (*runner, error) {
	tags := map[peer.Layout][2]C.dnnl_format_tag_t{ // in oneDNN and in the problem
		peer.NCHW:   {C.dnnl_nchw, C.dnnl_nchw},
		peer.NHWC:   {C.dnnl_nhwc, C.dnnl_nhwc},
		peer.NCHW8c: {C.dnnl_nChw8c, C.dnnl_nchw},
	}
	tag, ok := tags[p.Layout]
	if !ok {
		return nil, peer.Unsupported("layout %s", p.Layout)
	}
	C.omp_set_num_threads(C.int(threads))
	r := &runner{problem: p}
	check("engine", C.dnnl_engine_create(&r.engine, C.dnnl_cpu, 0))
	check("stream", C.dnnl_stream_create(&r.stream, r.engine, C.dnnl_stream_default_flags))

	dims := []int{p.N, p.C, p.H, p.W}
	tensor := func(values []float32) *memory {
		return r.memory(describe(dims, tag[0]), describe(dims, tag[1]), values, p.Len())
	}
	channels := func(values []float32) *memory {
		d := describe([]int{p.C}, C.dnnl_a)
		return r.memory(d, d, values, p.C)
	}
	x, dy := tensor(p.X), tensor(p.DY)
	gamma, beta, mean, variance := channels(p.Gamma), channels(p.Beta), channels(p.Mean), channels(p.Var)
	batchMean, batchVar := channels(nil), channels(nil)
	r.y, r.inferred, r.dx = tensor(nil), tensor(nil), tensor(nil)
	r.dgamma, r.dbeta = channels(nil), channels(nil)

	flags := C.uint(C.dnnl_use_scale | C.dnnl_use_shift)
	if p.ReLU {
		flags |= C.dnnl_fuse_norm_relu
	}
	epsilon := C.float(p.Epsilon)

	var desc C.dnnl_batch_normalization_desc_t
	check("forward", C.dnnl_batch_normalization_forward_desc_init(&desc, C.dnnl_forward_training, &x.desc, epsilon, flags))
	training := r.primitive("forward", &desc, nil)
	defer C.dnnl_primitive_desc_destroy(training)
	r.forward = newCall(training,
		arg(C.DNNL_ARG_SRC, x), arg(C.DNNL_ARG_SCALE, gamma), arg(C.DNNL_ARG_SHIFT, beta),
		arg(C.DNNL_ARG_MEAN, batchMean), arg(C.DNNL_ARG_VARIANCE, batchVar), arg(C.DNNL_ARG_DST, r.y))

	check("inference", C.dnnl_batch_normalization_forward_desc_init(&desc, C.dnnl_forward_inference, &x.desc, epsilon,
		flags|C.dnnl_use_global_stats))
	inference := r.primitive("inference", &desc, nil)
	defer C.dnnl_primitive_desc_destroy(inference)
	r.inference = newCall(inference,
		arg(C.DNNL_ARG_SRC, x), arg(C.DNNL_ARG_SCALE, gamma), arg(C.DNNL_ARG_SHIFT, beta),
		arg(C.DNNL_ARG_MEAN, mean), arg(C.DNNL_ARG_VARIANCE, variance), arg(C.DNNL_ARG_DST, r.inferred))

	check("backward", C.dnnl_batch_normalization_backward_desc_init(&desc, C.dnnl_backward, &r.dx.desc, &x.desc, epsilon, flags))
	backward := r.primitive("backward", &desc, training)
	defer C.dnnl_primitive_desc_destroy(backward)
	r.backward = newCall(backward,
		arg(C.DNNL_ARG_DIFF_DST, dy), arg(C.DNNL_ARG_SRC, x), arg(C.DNNL_ARG_SCALE, gamma), arg(C.DNNL_ARG_SHIFT, beta),
		arg(C.DNNL_ARG_MEAN, batchMean), arg(C.DNNL_ARG_VARIANCE, batchVar), arg(C.DNNL_ARG_DIFF_SRC, r.dx),
		arg(C.DNNL_ARG_DIFF_SCALE, r.dgamma), arg(C.DNNL_ARG_DIFF_SHIFT, r.dbeta))

	if p.ReLU { // which values were positive: a bit each, or a byte
		d := *C.dnnl_primitive_desc_query_md(training, C.dnnl_query_workspace_md, 0)
		workspace := arg(C.DNNL_ARG_WORKSPACE, r.memory(d, d, nil, 0))
		r.forward.args = append(r.forward.args, workspace)
		r.backward.args = append(r.backward.args, workspace)
	}
	return r, nil
}

// describe returns the description of dense float32 in the order of the tag.
func describe(dims []int, tag C.dnnl_format_tag_t) C.dnnl_memory_desc_t {
	var sizes C.dnnl_dims_t
	for i, d := range dims {
		sizes[i] = C.dnnl_dim_t(d)
	}
	var desc C.dnnl_memory_desc_t
	check("layout", C.dnnl_memory_desc_init_by_tag(&desc, C.int(len(dims)), &sizes[0], C.dnnl_f32, tag))
	return desc
}

// memory makes memory that desc describes, filled with values that plain
// describes, if there are any.
func (r *runner) memory(desc, plain C.dnnl_memory_desc_t, values []float32, n int) *memory {
	m := &memory{desc: desc, plain: plain, values: n}
	check("memory", C.dnnl_memory_create(&m.handle, &m.desc, r.engine, C.allocate()))
	r.memories = append(r.memories, m)
	if values != nil {
		r.exchange(m, func(there []float32) { copy(there, values) }, true)
	}
	return m
}

// read returns the values of m in the order of the problem.
func (r *runner) read(m *memory) []float32 {
	values := make([]float32, m.values)
	r.exchange(m, func(there []float32) { copy(values, there) }, false)
	return values
}

// exchange calls f with the values of m in the order of the problem, and then
// writes them to m, or reads them from it before.
func (r *runner) exchange(m *memory, f func(values []float32), write bool) {
	var buffer C.dnnl_memory_t
	check("memory", C.dnnl_memory_create(&buffer, &m.plain, r.engine, C.allocate()))
	defer C.dnnl_memory_destroy(buffer)
	var data unsafe.Pointer
	check("memory", C.dnnl_memory_get_data_handle(buffer, &data))
	values := unsafe.Slice((*float32)(data), m.values)
	if write {
		f(values)
		r.reorder(&m.plain, buffer, &m.desc, m.handle)
	} else {
		r.reorder(&m.desc, m.handle, &m.plain, buffer)
		f(values)
	}
}

func (r *runner) reorder(fromDesc *C.dnnl_memory_desc_t, from C.dnnl_memory_t, toDesc *C.dnnl_memory_desc_t, to C.dnnl_memory_t) {
	var desc C.dnnl_primitive_desc_t
	check("reorder", C.dnnl_reorder_primitive_desc_create(&desc, fromDesc, r.engine, toDesc, r.engine, nil))
	defer C.dnnl_primitive_desc_destroy(desc)
	c := newCall(desc,
		C.dnnl_exec_arg_t{arg: C.DNNL_ARG_FROM, memory: from}, C.dnnl_exec_arg_t{arg: C.DNNL_ARG_TO, memory: to})
	defer C.dnnl_primitive_destroy(c.primitive)
	r.run(c)
}

func (r *runner) primitive(what string, desc *C.dnnl_batch_normalization_desc_t, hint C.dnnl_primitive_desc_t) C.dnnl_primitive_desc_t {
	var p C.dnnl_primitive_desc_t
	check(what, C.dnnl_primitive_desc_create(&p, C.const_dnnl_op_desc_t(unsafe.Pointer(desc)), nil, r.engine, hint))
	return p
}

func newCall(desc C.dnnl_primitive_desc_t, args ...C.dnnl_exec_arg_t) call {
	c := call{args: args}
	check("primitive", C.dnnl_primitive_create(&c.primitive, desc))
	return c
}

func arg(index C.int, m *memory) C.dnnl_exec_arg_t {
	return C.dnnl_exec_arg_t{arg: index, memory: m.handle}
}

func (r *runner) run(c call) (time.Duration, error) {
	var ns C.int64_t
	check("run", C.execute(c.primitive, r.stream, C.int(len(c.args)), &c.args[0], &ns))
	return time.Duration(ns), nil
}

func (r *runner) Forward() (time.Duration, error)   { return r.run(r.forward) }
func (r *runner) Inference() (time.Duration, error) { return r.run(r.inference) }
func (r *runner) Backward() (time.Duration, error)  { return r.run(r.backward) }

func (r *runner) Outputs() peer.Outputs {
	return peer.Outputs{
		Y: r.read(r.y), Inference: r.read(r.inferred),
		DX: r.read(r.dx), DGamma: r.read(r.dgamma), DBeta: r.read(r.dbeta),
	}
}

func (r *runner) Close() error {
	for _, c := range []call{r.forward, r.inference, r.backward} {
		C.dnnl_primitive_destroy(c.primitive)
	}
	for _, m := range r.memories {
		C.dnnl_memory_destroy(m.handle)
	}
	C.dnnl_stream_destroy(r.stream)
	C.dnnl_engine_destroy(r.engine)
	return nil
}
