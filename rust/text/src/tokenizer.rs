//! A tokenizer.json: encoding of batches, with truncation per call, and decoding.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokenizers::utils::truncation::{truncate_encodings, TruncationDirection, TruncationStrategy};
use tokenizers::{Encoding, ModelWrapper, PostProcessor, Tokenizer, TruncationParams};

use crate::allocator::{budget_for, within};
use crate::ffi::{guard, leak, reclaim, slice, EtherString, EtherText};
use crate::growth;

pub struct EtherTokenizer {
    /// Of its file, for messages.
    name: String,
    tokenizer: Tokenizer,
    direction: TruncationDirection,
    /// None: encode in the calling thread.
    pool: Option<ThreadPool>,
}

/// A BPE that leaves out merges at random would read the same text differently each time.
fn without_dropout(tokenizer: &mut Tokenizer) {
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model() {
        if bpe.dropout.is_some() {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(ModelWrapper::BPE(bpe));
        }
    }
}

impl EtherTokenizer {
    fn load(name: &str, json: &[u8], threads: usize, direction: TruncationDirection) -> Result<Self, String> {
        growth::check(json)?;
        let read = within(budget_for(json.len()), name, || Tokenizer::from_bytes(json));
        let mut tokenizer = read.map_err(|error| error.to_string())?;
        without_dropout(&mut tokenizer);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let pool = match threads {
            0 | 1 => None,
            // Where a limit of memory or processes allows no threads, the calling one is enough.
            _ => ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|index| format!("tokenizer-{index}"))
                .build()
                .ok(),
        };
        Ok(EtherTokenizer { name: name.to_string(), tokenizer, direction, pool })
    }

    /// Encodes one text or pair. Truncation cuts the longer of a pair first, before special tokens are added, as
    /// transformers does. Returns the encoding and whether it was cut.
    fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: usize,
        add_special_tokens: bool,
    ) -> tokenizers::Result<(Encoding, bool)> {
        let mut first = self.tokenizer.encode_fast(text, false)?;
        let mut second = pair.map(|pair| self.tokenizer.encode_fast(pair, false)).transpose()?;
        if let Some(second) = second.as_mut() {
            second.set_type_ids(vec![1; second.len()]);
        }

        let processor = self.tokenizer.get_post_processor();
        let mut truncated = false;
        if max_length > 0 {
            let added = match processor {
                Some(processor) if add_special_tokens => processor.added_tokens(pair.is_some()),
                _ => 0,
            };
            let room = max_length
                .checked_sub(added)
                .ok_or_else(|| format!("max_length {max_length} is less than the {added} special tokens"))?;
            let length = first.len() + second.as_ref().map_or(0, |second| second.len());
            truncated = length > room;
            let params = TruncationParams {
                direction: self.direction,
                max_length: room,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            };
            (first, second) = truncate_encodings(first, second, &params)?;
            // The rest of the text, cut into pieces, is of no use and would be processed as well.
            first.take_overflowing();
            second.as_mut().map(|second| second.take_overflowing());
        }

        let encoding = match processor {
            Some(processor) => processor.process(first, second, add_special_tokens)?,
            None => Encoding::merge(std::iter::once(first).chain(second), false),
        };
        if max_length > 0 && encoding.len() > max_length {
            let found = encoding.len();
            return Err(format!(
                "its post_processor repeats the text: {found} tokens where {max_length} were asked for"
            )
            .into());
        }
        Ok((encoding, truncated))
    }

    fn encode_batch(
        &self,
        texts: &[EtherText],
        pairs: &[EtherText],
        max_length: usize,
        add_special_tokens: bool,
    ) -> Result<EtherEncodings, String> {
        let inputs = (0..texts.len())
            .map(|i| {
                let text = unsafe { texts[i].text(&format!("text {i}")) }?;
                let pair = match pairs.get(i) {
                    Some(pair) => Some(unsafe { pair.text(&format!("pair text {i}")) }?),
                    None => None,
                };
                Ok((text, pair))
            })
            .collect::<Result<Vec<_>, String>>()?;

        let encode = |(text, pair): &(&str, Option<&str>)| {
            let bytes = text.len() + pair.map_or(0, str::len);
            within(budget_for(bytes), &self.name, || self.encode(text, *pair, max_length, add_special_tokens))
                .map_err(|error| error.to_string())
        };
        let encodings: Vec<(Encoding, bool)> = match &self.pool {
            Some(pool) if inputs.len() > 1 => {
                pool.install(|| inputs.par_iter().map(encode).collect::<Result<_, String>>())
            }
            _ => inputs.iter().map(encode).collect::<Result<_, String>>(),
        }?;
        Ok(EtherEncodings::from(encodings))
    }
}

/// Encodings in a row; see ether_text.h.
#[repr(C)]
pub struct EtherEncodings {
    count: usize,
    offsets: *mut usize,
    ids: *mut i64,
    type_ids: *mut i64,
    truncated: *mut bool,
}

impl From<Vec<(Encoding, bool)>> for EtherEncodings {
    fn from(encodings: Vec<(Encoding, bool)>) -> Self {
        let (mut offsets, mut ids, mut type_ids, mut truncated) = (vec![0], vec![], vec![], vec![]);
        for (encoding, cut) in &encodings {
            ids.extend(encoding.get_ids().iter().map(|id| i64::from(*id)));
            type_ids.extend(encoding.get_type_ids().iter().map(|id| i64::from(*id)));
            offsets.push(ids.len());
            truncated.push(*cut);
        }
        EtherEncodings {
            count: encodings.len(),
            offsets: leak(offsets).0,
            ids: leak(ids).0,
            type_ids: leak(type_ids).0,
            truncated: leak(truncated).0,
        }
    }
}

/// # Safety
/// `encodings` must come from this library and not have been freed.
#[no_mangle]
pub unsafe extern "C" fn ether_encodings_free(encodings: EtherEncodings) {
    let total = *encodings.offsets.add(encodings.count);
    reclaim(encodings.offsets, encodings.count + 1);
    reclaim(encodings.ids, total);
    reclaim(encodings.type_ids, total);
    reclaim(encodings.truncated, encodings.count);
}

/// # Safety
/// See ether_text.h; so for all functions below.
#[no_mangle]
pub unsafe extern "C" fn ether_tokenizer_load(
    name: EtherText,
    json: EtherText,
    threads: usize,
    truncate_left: bool,
    error: *mut EtherString,
) -> *mut EtherTokenizer {
    let direction = if truncate_left { TruncationDirection::Left } else { TruncationDirection::Right };
    guard(error, std::ptr::null_mut(), || {
        Ok(Box::into_raw(Box::new(EtherTokenizer::load(
            &String::from_utf8_lossy(name.bytes()),
            json.bytes(),
            threads,
            direction,
        )?)))
    })
}

#[no_mangle]
pub unsafe extern "C" fn ether_tokenizer_free(tokenizer: *mut EtherTokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub unsafe extern "C" fn ether_tokenizer_vocab_size(tokenizer: &EtherTokenizer) -> usize {
    tokenizer.tokenizer.get_vocab_size(true)
}

#[no_mangle]
pub unsafe extern "C" fn ether_tokenizer_token_id(tokenizer: &EtherTokenizer, token: EtherText) -> i64 {
    let id = token.text("token").ok().and_then(|token| tokenizer.tokenizer.token_to_id(token));
    id.map_or(-1, i64::from)
}

#[no_mangle]
pub unsafe extern "C" fn ether_tokenizer_encode(
    tokenizer: &EtherTokenizer,
    texts: *const EtherText,
    pairs: *const EtherText,
    count: usize,
    max_length: usize,
    add_special_tokens: bool,
    out: *mut EtherEncodings,
    error: *mut EtherString,
) -> bool {
    guard(error, false, || {
        let texts = slice(texts, count);
        let pairs = if pairs.is_null() { &[] } else { slice(pairs, count) };
        out.write(tokenizer.encode_batch(texts, pairs, max_length, add_special_tokens)?);
        Ok(true)
    })
}

#[no_mangle]
pub unsafe extern "C" fn ether_tokenizer_decode(
    tokenizer: &EtherTokenizer,
    ids: *const u32,
    count: usize,
    skip_special: bool,
    out: *mut EtherString,
    error: *mut EtherString,
) -> bool {
    guard(error, false, || {
        let text = tokenizer.tokenizer.decode(slice(ids, count), skip_special);
        out.write(EtherString::from(text.map_err(|error| error.to_string())?));
        Ok(true)
    })
}
