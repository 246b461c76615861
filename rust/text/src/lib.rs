//! Hugging Face tokenizers and chat templates behind the C interface of ether_text.h.
//! Every exported function that can fail runs inside `guard`, so that no panic crosses the boundary.

mod allocator;
mod chat;
mod ffi;
mod growth;
mod tokenizer;
