//! The C library's heap, which ends the process with one line where memory ends: Rust's own answer to that is to abort
//! with a trace.

use std::alloc::{GlobalAlloc, Layout, System};

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

extern "C" {
    fn write(descriptor: i32, bytes: *const u8, count: usize) -> isize;
    fn _exit(code: i32) -> !;
}

fn or_exit(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        let line = b"ether: out of memory while texts were read; give the process more, or it less text\n";
        unsafe {
            write(2, line.as_ptr(), line.len());
            _exit(1)
        }
    }
    memory
}

unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        or_exit(System.alloc(layout))
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        or_exit(System.alloc_zeroed(layout))
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        or_exit(System.realloc(memory, layout, size))
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        System.dealloc(memory, layout)
    }
}
