//go:build mpi && cgo

#if defined(__has_include)
#if !__has_include(<mpi.h>)
#error "MPI is missing: apt-get install libopenmpi-dev openmpi-bin. If it is in a place of its own, build with CC=mpicc go build -tags mpi"
#endif
#endif

#define _XOPEN_SOURCE 700

#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "native.h"

struct bn_comm {
	MPI_Comm comm;
	int rank, size;
	double *memory;
	int64_t capacity;
	// Messages under way: the requests of sends, then those of receives, with the other ranks.
	MPI_Request *requests;
	MPI_Status *statuses;
	int *indices, *peers;
	int sends, messages, left;
	// awaited lists ranks from which nothing has come yet. By rank: at is the place of the
	// expected doubles in the memory, expected their number, and larger the memory of a
	// message that has more.
	int *awaited, awaiting;
	int64_t *at;
	int *expected;
	double **larger;
};

enum { tag = 1 };

// Go's runtime needs every signal handler to run on the signal stack. Some libraries
// install handlers without the flag for it.
static void own_signal_stacks(void)
{
	for (int s = 1; s < 32; s++) {
		struct sigaction a;
		if (sigaction(s, NULL, &a) != 0 || (a.sa_flags & SA_ONSTACK) != 0)
			continue;
		if (!(a.sa_flags & SA_SIGINFO) && (a.sa_handler == SIG_DFL || a.sa_handler == SIG_IGN))
			continue;
		a.sa_flags |= SA_ONSTACK;
		sigaction(s, &a, NULL);
	}
}

int bn_init(int *granted, int *enough)
{
	int begun = 0;
	int code = MPI_Initialized(&begun);
	*enough = MPI_THREAD_SERIALIZED;
	if (code != MPI_SUCCESS)
		return code;
	if (begun)
		return MPI_Query_thread(granted);
	code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, granted);
	own_signal_stacks();
	return code;
}

int bn_finalize(void) { return MPI_Finalize(); }
int bn_abort(int code) { return MPI_Abort(MPI_COMM_WORLD, code); }

static int wrap(MPI_Comm comm, bn_comm **out, int *rank, int *size)
{
	bn_comm *c = calloc(1, sizeof *c);
	if (c == NULL)
		return MPI_ERR_NO_MEM;
	c->comm = comm;
	int code = MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
	if (code == MPI_SUCCESS)
		code = MPI_Comm_rank(comm, &c->rank);
	if (code == MPI_SUCCESS)
		code = MPI_Comm_size(comm, &c->size);
	size_t n = 2 * (size_t)c->size + 1;
	c->requests = malloc(n * sizeof *c->requests);
	c->statuses = malloc(n * sizeof *c->statuses);
	c->indices = malloc(n * sizeof *c->indices);
	c->peers = malloc(n * sizeof *c->peers);
	c->awaited = malloc(n * sizeof *c->awaited);
	c->at = malloc(n * sizeof *c->at);
	c->expected = malloc(n * sizeof *c->expected);
	c->larger = calloc(n, sizeof *c->larger);
	if (c->requests == NULL || c->statuses == NULL || c->indices == NULL || c->peers == NULL || c->awaited == NULL || c->at == NULL ||
	    c->expected == NULL || c->larger == NULL)
		code = MPI_ERR_NO_MEM;
	*out = c;
	*rank = c->rank;
	*size = c->size;
	return code;
}

int bn_world(bn_comm **out, int *rank, int *size)
{
	MPI_Comm comm;
	int code = MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
	if (code == MPI_SUCCESS)
		code = MPI_Comm_dup(MPI_COMM_WORLD, &comm);
	return code == MPI_SUCCESS ? wrap(comm, out, rank, size) : code;
}

int bn_split(bn_comm *c, int color, int key, bn_comm **out, int *rank, int *size)
{
	MPI_Comm comm;
	int code = MPI_Comm_split(c->comm, color < 0 ? MPI_UNDEFINED : color, key, &comm);
	if (code != MPI_SUCCESS || comm == MPI_COMM_NULL)
		return code;
	return wrap(comm, out, rank, size);
}

int bn_free(bn_comm *c)
{
	int code = MPI_Comm_free(&c->comm);
	free(c->memory);
	free(c->requests);
	free(c->statuses);
	free(c->indices);
	free(c->peers);
	free(c->awaited);
	free(c->at);
	free(c->expected);
	free(c->larger);
	free(c);
	return code;
}

double *bn_memory(bn_comm *c, int64_t n)
{
	if (n > c->capacity) {
		free(c->memory);
		c->memory = malloc((size_t)n * sizeof(double));
		c->capacity = c->memory == NULL ? 0 : n;
	}
	return c->memory;
}

int bn_start(bn_comm *c, const int *recv, const int *send)
{
	int64_t at = 0;
	int code = MPI_SUCCESS;
	c->messages = c->awaiting = c->left = 0;
	for (int i = 0; i < c->size; i++) {
		c->expected[i] = recv[i];
		c->at[i] = at;
		at += recv[i];
		if (recv[i] > 0) {
			c->awaited[c->awaiting++] = i;
			c->left++;
		}
	}
	for (int i = 0; i < c->size && code == MPI_SUCCESS; i++) {
		if (send[i] == 0)
			continue;
		c->peers[c->messages] = i;
		code = MPI_Isend(c->memory + at, send[i], MPI_DOUBLE, i, tag, c->comm, &c->requests[c->messages]);
		if (code == MPI_SUCCESS) {
			c->messages++;
			c->left++;
		}
		at += send[i];
	}
	c->sends = c->messages;
	return code;
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

// receive begins to receive a message that has come. A message that is longer than its
// place gets memory of its own, since not all libraries truncate it.
static int receive(bn_comm *c, int from, MPI_Message *message, MPI_Status *status, int *recv)
{
	int n = 0;
	int code = MPI_Get_count(status, MPI_DOUBLE, &n);
	if (code != MPI_SUCCESS)
		return code;
	if (n == MPI_UNDEFINED || n < 0)
		return MPI_ERR_TYPE;
	double *to = c->memory + c->at[from];
	if (n > c->expected[from]) {
		to = c->larger[from] = malloc((size_t)n * sizeof(double));
		if (to == NULL)
			return MPI_ERR_NO_MEM;
	}
	recv[from] = n;
	c->peers[c->messages] = from;
	return MPI_Imrecv(to, n, MPI_DOUBLE, message, &c->requests[c->messages++]);
}

// look begins to receive the messages that have come from awaited ranks.
static int look(bn_comm *c, int *recv, int *peer)
{
	for (int k = 0; k < c->awaiting;) {
		int from = c->awaited[k], here = 0;
		MPI_Message message;
		MPI_Status status;
		int code = MPI_Improbe(from, tag, c->comm, &here, &message, &status);
		if (code == MPI_SUCCESS && here)
			code = receive(c, from, &message, &status, recv);
		if (code != MPI_SUCCESS) {
			*peer = from;
			return code;
		}
		if (here)
			c->awaited[k] = c->awaited[--c->awaiting];
		else
			k++;
	}
	return MPI_SUCCESS;
}

// finish notes that a message is done.
static void finish(bn_comm *c, int i)
{
	int from = c->peers[i];
	c->left--;
	if (i < c->sends || c->larger[from] == NULL)
		return;
	memcpy(c->memory + c->at[from], c->larger[from], (size_t)c->expected[from] * sizeof(double));
	free(c->larger[from]);
	c->larger[from] = NULL;
}

int bn_poll(bn_comm *c, int64_t micros, int *recv, int *left, int *peer)
{
	int64_t end = now() + micros;
	int code = MPI_SUCCESS;
	while (c->left > 0) {
		code = look(c, recv, peer);
		if (code != MPI_SUCCESS)
			break;
		int done = 0;
		int error = c->messages == 0 ? MPI_SUCCESS : MPI_Testsome(c->messages, c->requests, &done, c->indices, c->statuses);
		int class = MPI_SUCCESS;
		if (error != MPI_SUCCESS)
			MPI_Error_class(error, &class);
		if (error != MPI_SUCCESS && class != MPI_ERR_IN_STATUS) {
			code = error;
			break;
		}
		if (done == MPI_UNDEFINED)
			done = 0;
		for (int k = 0; k < done; k++) {
			int i = c->indices[k];
			int failed = class == MPI_ERR_IN_STATUS ? c->statuses[k].MPI_ERROR : MPI_SUCCESS;
			finish(c, i);
			if (failed != MPI_SUCCESS && code == MPI_SUCCESS) {
				code = failed;
				*peer = c->peers[i];
			}
		}
		if (code != MPI_SUCCESS)
			break;
		if (done > 0)
			continue;
		if (now() >= end)
			break;
		sched_yield();
	}
	*left = c->left;
	if (code != MPI_SUCCESS)
		return code;
	if (c->awaiting > 0) {
		*peer = c->awaited[0];
		return code;
	}
	for (int i = 0; i < c->messages; i++)
		if (c->requests[i] != MPI_REQUEST_NULL) {
			*peer = c->peers[i];
			break;
		}
	return code;
}

void bn_error(int code, char *text, int size)
{
	char all[MPI_MAX_ERROR_STRING + 1];
	int n = 0;
	if (MPI_Error_string(code, all, &n) != MPI_SUCCESS)
		n = 0;
	all[n] = 0;
	strncpy(text, all, (size_t)size - 1);
	text[size - 1] = 0;
}

void bn_library(char *text, int size)
{
	char all[MPI_MAX_LIBRARY_VERSION_STRING + 1];
	int n = 0;
	if (MPI_Get_library_version(all, &n) != MPI_SUCCESS)
		n = 0;
	all[n] = 0;
	strncpy(text, all, (size_t)size - 1);
	text[size - 1] = 0;
}
