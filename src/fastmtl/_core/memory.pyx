"""Memory for large results: aligned, on huge pages, and taken up again while it is still mapped.

A fresh page costs more to obtain, because the system clears it, than a kernel value costs to compute.
The last large block given back therefore stays mapped, marked as free: the system takes its pages
whenever memory is short, and until then the next result of about its size finds them ready.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <stdlib.h>
    #include <stdint.h>
    #if defined(__linux__) || defined(__APPLE__)
    #include <sys/mman.h>
    #ifndef MAP_ANONYMOUS
    #define MAP_ANONYMOUS MAP_ANON
    #endif
    #endif
    #if defined(MADV_FREE) && defined(__GNUC__)
    enum { HUGE_PAGE = 1 << 21 };
    typedef struct { char *start; size_t size; } mapping;
    static mapping *kept;  /* at most one block, exchanged atomically */

    static mapping *map_block(size_t size) {
        mapping *block = __atomic_exchange_n(&kept, NULL, __ATOMIC_ACQ_REL);
        if (block && block->size >= size && block->size / 2 <= size) return block;
        if (block) {
            munmap(block->start, block->size);
            free(block);
        }
        block = (mapping *)malloc(sizeof *block);
        if (!block) return NULL;
        block->size = (size + 2 * (size_t)HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        block->start = (char *)mmap(NULL, block->size, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block->start == (char *)MAP_FAILED) {
            free(block);
            return NULL;
        }
    #ifdef MADV_HUGEPAGE
        madvise(block->start, block->size, MADV_HUGEPAGE);
    #endif
        return block;
    }
    static char *block_data(const mapping *block) {
        return (char *)(((uintptr_t)block->start + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    }
    static void unmap_block(mapping *block) {
        madvise(block->start, block->size, MADV_FREE);
        block = __atomic_exchange_n(&kept, block, __ATOMIC_ACQ_REL);
        if (block) {
            munmap(block->start, block->size);
            free(block);
        }
    }
    #else
    typedef struct { char *start; size_t size; } mapping;
    static mapping *map_block(size_t size) { (void)size; return NULL; }
    static char *block_data(const mapping *block) { return block->start; }
    static void unmap_block(mapping *block) { (void)block; }
    #endif
    """
    ctypedef struct mapping:
        pass
    mapping *map_block(size_t size) nogil
    char *block_data(const mapping *block) nogil
    void unmap_block(mapping *block) nogil


cdef class Block:
    """`size` bytes on huge pages, as a writable buffer; MemoryError where the system has none."""

    cdef mapping *block
    cdef int64_t size

    def __cinit__(self, int64_t size):
        self.block = map_block(size)
        self.size = size
        if self.block == NULL:
            raise MemoryError(f"no block of {size} bytes")

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, block_data(self.block), self.size, 0, flags)

    def __dealloc__(self):
        if self.block != NULL:
            unmap_block(self.block)
