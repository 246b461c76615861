//! The C library's heap, which ends the process with one line where memory ends: Rust's own answer to that is to abort
//! with a trace. So it does where a tokenizer takes more than it may.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

extern "C" {
    fn write(descriptor: i32, bytes: *const u8, count: usize) -> isize;
    fn _exit(code: i32) -> !;
}

/// What a thread may still take, and on whose behalf.
#[derive(Clone, Copy)]
struct Budget {
    left: isize,
    name: *const str,
}

const UNBOUNDED: isize = isize::MAX;

thread_local! {
    static BUDGET: Cell<Budget> = const { Cell::new(Budget { left: UNBOUNDED, name: "" }) };
}

/// What reading a file or a text of so many bytes may take: far more than any tokenizer that is meant well.
pub fn budget_for(bytes: usize) -> isize {
    const LEAST: isize = 256 << 20;
    LEAST + 4096 * bytes as isize
}

/// Runs `body`, which may take `bytes` more than the calling thread held before; more ends the process, in the words of
/// `name`, a tokenizer's file.
pub fn within<T>(bytes: isize, name: &str, body: impl FnOnce() -> T) -> T {
    struct Restore(Budget);
    impl Drop for Restore {
        fn drop(&mut self) {
            BUDGET.set(self.0);
        }
    }
    let _restore = Restore(BUDGET.replace(Budget { left: bytes, name }));
    body()
}

unsafe fn exit(pieces: &[&str]) -> ! {
    for piece in pieces {
        write(2, piece.as_ptr(), piece.len());
    }
    _exit(1)
}

unsafe fn taking(bytes: usize) {
    let mut budget = BUDGET.get();
    if budget.left == UNBOUNDED {
        return;
    }
    budget.left -= bytes as isize;
    if budget.left < 0 {
        exit(&[
            "ether: ",
            &*budget.name,
            ": takes far more memory than any that is sound, so it is damaged or \
            made to do harm; take the model's original tokenizer\n",
        ]);
    }
    BUDGET.set(budget);
}

fn giving_back(bytes: usize) {
    let mut budget = BUDGET.get();
    if budget.left != UNBOUNDED {
        budget.left += bytes as isize;
        BUDGET.set(budget);
    }
}

unsafe fn or_exit(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        exit(&["ether: out of memory while texts were read; give the process more, or it less text\n"]);
    }
    memory
}

unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taking(layout.size());
        or_exit(System.alloc(layout))
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taking(layout.size());
        or_exit(System.alloc_zeroed(layout))
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taking(size);
        giving_back(layout.size());
        or_exit(System.realloc(memory, layout, size))
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        giving_back(layout.size());
        System.dealloc(memory, layout)
    }
}
