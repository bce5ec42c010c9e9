/* What the compiled modules ask of OpenMP, on threads whose begin and end ThreadSanitizer sees. It
 * knows nothing of libgomp's, which wait for one another in ways of their own: each loop would seem
 * to race with the code before and after it.
 *
 * The turns of a dynamic loop are taken without an order between threads that the sanitizer could
 * see, as this file is compiled without it: it must not hide a race of two turns. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    void (*body)(void *);
    void *data;
    int size;
    long taken; /* iterations of the region's dynamic loop, the only one it may have */
    pthread_barrier_t barrier;
} team;

typedef struct {
    team *of;
    int number;
} member;

static __thread member self;
static __thread long loop_start, loop_end, loop_step, loop_chunk;
static __thread int loops;

static void refuse(const char *why) {
    fprintf(stderr, "openmp.c: %s\n", why);
    abort();
}

static void *run(void *as) {
    member outer = self;
    self = *(member *)as;
    loops = 0;
    self.of->body(self.of->data);
    self = outer;
    return NULL;
}

int omp_get_max_threads(void) { return 4; }
int omp_get_thread_num(void) { return self.number; }
int omp_get_num_threads(void) { return self.of ? self.of->size : 1; }

void GOMP_parallel(void (*body)(void *), void *data, unsigned size, unsigned flags) {
    (void)flags;
    team own = {body, data, size ? (int)size : omp_get_max_threads(), 0};
    pthread_t *threads = calloc(own.size, sizeof *threads);
    member *members = calloc(own.size, sizeof *members);
    if (!threads || !members || pthread_barrier_init(&own.barrier, NULL, own.size)) refuse("no memory");
    for (int k = 0; k < own.size; k++) members[k] = (member){&own, k};
    for (int k = 1; k < own.size; k++)
        if (pthread_create(&threads[k], NULL, run, &members[k])) refuse("no thread");
    run(&members[0]);
    for (int k = 1; k < own.size; k++) pthread_join(threads[k], NULL);
    pthread_barrier_destroy(&own.barrier);
    free(members);
    free(threads);
}

void GOMP_barrier(void) {
    if (self.of) pthread_barrier_wait(&self.of->barrier);
}

_Bool GOMP_loop_nonmonotonic_dynamic_next(long *begin, long *end) {
    long taken = __atomic_fetch_add(&self.of->taken, loop_chunk, __ATOMIC_RELAXED);
    long size = (loop_end - loop_start) / loop_step;
    if (taken >= size) return 0;
    *begin = loop_start + taken * loop_step;
    *end = taken + loop_chunk < size ? *begin + loop_chunk * loop_step : loop_end;
    return 1;
}

_Bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *begin, long *last) {
    if (!self.of || loops++) refuse("one dynamic loop to a parallel region");
    loop_start = start, loop_end = end, loop_step = step, loop_chunk = chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(begin, last);
}

void GOMP_loop_end_nowait(void) {}
