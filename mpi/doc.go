// Package mpi connects the processes of an MPI program for synchronized batch
// norm: [Comm] is a [batchnorm.Collective] over MPI, which brings the
// transport, be it shared memory or the network of a cluster.
//
// It uses cgo, and only behind the build tag mpi, so that nothing else of this
// repository needs a C compiler. Without the tag it builds as well, and [Init] returns
// [ErrMissing], which says what to install and how to build:
//
//	apt-get install libopenmpi-dev openmpi-bin    # or libmpich-dev mpich
//	go build -tags mpi -o train .
//	mpirun -np 4 ./train
//
// The header and the library are looked for where Debian's alternatives put them. In
// any other place CC=mpicc names them. Where Open MPI and MPICH are both installed,
// the tags mpi,mpich take MPICH, with mpirun.mpich.
//
// # A program
//
//	comm, err := mpi.Init(time.Minute)
//	group, err := batchnorm.NewSyncGroup(comm)
//	err = layer.Synchronize(group)
//	...                   // training
//	err = mpi.Finalize()  // or, after an error, mpi.Abort(1)
//
// # Failure
//
// No call waits for ever. A rank that has ended, or does not come within the time
// limit of the communicator, is an error that wraps [batchnorm.ErrExchange] and
// names the rank; it comes on every rank that waits, directly or for a rank that
// waits, within two time limits. The communicator is of no use then, and [Abort] ends
// the program. MPI's own errors come back as errors too (MPI_ERRORS_RETURN).
//
// mpirun itself ends all processes when one is killed, unless told otherwise:
// mpirun --enable-recovery for Open MPI 4. MPICH's mpirun ends them in any case.
//
// # Threads
//
// Init asks for MPI_THREAD_SERIALIZED: goroutines move from thread to thread, so
// that MPI is called by several threads, which MPI_THREAD_FUNNELED forbids; and a
// lock sees to it that there is one call at a time, so that
// MPI_THREAD_MULTIPLE, slower in some libraries, isn't needed. No call
// blocks: messages are begun, and tested for their arrival until all
// are there. So communicators can be used by several goroutines at a time, and
// a message on one makes progress while another is waited for. A program that
// calls MPI by other means besides has to ask for MPI_THREAD_MULTIPLE itself before Init.
//
// # Memory
//
// Messages go through memory that C has allocated, since MPI reads and writes after a
// call has returned. It grows to the longest exchange and is kept. Calls allocate
// nothing after that.
package mpi
