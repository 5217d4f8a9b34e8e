// The calls of MPI that the package needs. All functions return MPI's error code, and are
// called one at a time.

#include <stdint.h>

typedef struct bn_comm bn_comm;

// bn_init initializes MPI, unless that has been done already. granted is the thread level
// that it grants, and enough the lowest one that is enough.
int bn_init(int *granted, int *enough);
int bn_finalize(void);
int bn_abort(int code);

// bn_world duplicates MPI_COMM_WORLD. bn_split splits c, and gives no communicator for a
// color below 0.
int bn_world(bn_comm **out, int *rank, int *size);
int bn_split(bn_comm *c, int color, int key, bn_comm **out, int *rank, int *size);
int bn_free(bn_comm *c);

// bn_memory returns memory for n doubles, which stays valid until the next call, or
// 0 where there is none. No message may be under way.
double *bn_memory(bn_comm *c, int64_t n);

// bn_start begins to send send[i] doubles to rank i, and expects recv[i] doubles from it.
// They lie one behind the other in the memory: those of recv, and then those of send.
int bn_start(bn_comm *c, const int *recv, const int *send);

// bn_poll tests the messages for some microseconds, or until all are done.
// recv[i] becomes the number of doubles that came from rank i; if they are more than
// were expected, the memory has the first of them. left says how many messages are not
// done, and peer the other rank of one of them, or of the one that an error is about.
int bn_poll(bn_comm *c, int64_t micros, int *recv, int *left, int *peer);

// bn_error writes the text of an error.
void bn_error(int code, char *text, int size);

// bn_library writes name and version of the library.
void bn_library(char *text, int size);
