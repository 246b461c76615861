//! What crosses the boundary: texts, owned strings, errors.

use std::any::Any;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::sync::Once;

/// Borrowed text of the caller.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EtherText {
    data: *const u8,
    size: usize,
}

impl EtherText {
    /// # Safety
    /// `data` must point to `size` readable bytes that outlive the returned slice; it may be null if `size` is 0.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        slice(self.data, self.size)
    }

    /// # Safety
    /// As `bytes`.
    pub unsafe fn text<'a>(self, what: &str) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes())
            .map_err(|error| format!("{what} is not valid UTF-8 at byte {}", error.valid_up_to()))
    }
}

/// A slice from a pointer that C callers may leave null when there is nothing.
///
/// # Safety
/// `data` must point to `size` readable elements unless `size` is 0.
pub unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

/// Text owned by this side until `ether_string_free`.
#[repr(C)]
pub struct EtherString {
    data: *mut u8,
    size: usize,
}

impl From<String> for EtherString {
    fn from(text: String) -> Self {
        let (data, size) = leak(text.into_bytes());
        EtherString { data, size }
    }
}

/// # Safety
/// `string` must come from this library and not have been freed.
#[no_mangle]
pub unsafe extern "C" fn ether_string_free(string: EtherString) {
    reclaim(string.data, string.size);
}

/// Hands a vector to the caller as pointer and length.
pub fn leak<T>(values: Vec<T>) -> (*mut T, usize) {
    let values = values.into_boxed_slice();
    let size = values.len();
    (Box::into_raw(values) as *mut T, size)
}

/// Frees what `leak` handed out.
///
/// # Safety
/// `data` and `size` must be what `leak` returned, once; null is ignored.
pub unsafe fn reclaim<T>(data: *mut T, size: usize) {
    if !data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, size)));
    }
}

/// Runs `body`; an error or a panic becomes the message in `*error`, and the result `failed`.
///
/// # Safety
/// `error` must be writable.
pub unsafe fn guard<T>(error: *mut EtherString, failed: T, body: impl FnOnce() -> Result<T, String>) -> T {
    // The standard hook would print; all of this process's Rust code is ours.
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| set_hook(Box::new(|_| {})));

    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(format!("the tokenizers library stopped: {}", panic_message(panic))));
    result.unwrap_or_else(|message| {
        error.write(EtherString::from(message));
        failed
    })
}

fn panic_message(panic: Box<dyn Any + Send>) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text.to_string()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "unknown panic".to_string()
    }
}
