// Package mpi connects the processes of an MPI program for synchronized batch
// norm: [Comm] is a [batchnorm.Collective] over MPI. The transport, shared memory or the
// network of a cluster, is MPI's.
//
// It uses cgo behind the build tag mpi, so that nothing else of this repository needs a C
// compiler. Without the tag it builds as well, and [Init] returns [ErrMissing], whose text
// says how to build the program:
//
//	apt-get install libopenmpi-dev openmpi-bin    # or libmpich-dev mpich
//	go build -tags mpi -o train .
//	mpirun -np 4 ./train
//
// The compiler looks for the header and the library where Debian puts them; in any other
// place, CC=mpicc finds them. Where Open MPI and MPICH are both installed, the tags
// mpi,mpich choose MPICH, with mpirun.mpich.
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
// No call waits for ever. If a rank has ended, or does not come within the time limit of
// the communicator, every rank that waits for it, directly or through another rank, gets
// an error within two time limits. The error wraps [batchnorm.ErrExchange] and names the
// rank. The communicator can't be used afterwards, and [Abort] ends the program. MPI's own
// errors come back as errors, too (MPI_ERRORS_RETURN).
//
// When one process is killed, mpirun ends all others. With --enable-recovery that of Open
// MPI 4 leaves them; MPICH's always ends them.
//
// # Threads
//
// Init asks for MPI_THREAD_SERIALIZED. Goroutines move from thread to thread, so that
// several threads call MPI, which MPI_THREAD_FUNNELED forbids. A lock lets one thread call
// at a time, so that MPI_THREAD_MULTIPLE, slower in some libraries, isn't needed. No call
// blocks: messages are begun, and then tested until all have arrived. So several
// goroutines can use communicators at a time, and a message of one communicator arrives
// while another is waited for. A program that also calls MPI by other means asks for
// MPI_THREAD_MULTIPLE itself before Init.
//
// # Memory
//
// Messages go through memory that C has allocated, since MPI reads and writes after a
// call has returned. It grows to the longest exchange and is kept. Calls allocate
// nothing after that.
package mpi
