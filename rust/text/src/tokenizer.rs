//! A tokenizer.json: encoding of batches, with truncation per call, and decoding.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::value::RawValue;
use tokenizers::utils::truncation::{truncate_encodings, TruncationDirection, TruncationStrategy};
use tokenizers::{Encoding, ModelWrapper, PostProcessor, Tokenizer, TruncationParams};

use crate::ffi::{guard, leak, reclaim, slice, EtherString, EtherText};

pub struct EtherTokenizer {
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

/// One replacement of a normalizer: what it looks for (None: a regular expression) and what it puts there.
struct Replacement<'a> {
    pattern: Option<&'a str>,
    content: &'a str,
}

/// Those of a normalizer, in order; old files leave out the type.
fn replacements<'a>(normalizer: &'a serde_json::Value, found: &mut Vec<Replacement<'a>>) {
    if let Some(all) = normalizer["normalizers"].as_array() {
        all.iter().for_each(|one| replacements(one, found));
    } else if let Some(content) = normalizer["content"].as_str() {
        found.push(Replacement { pattern: normalizer["pattern"]["String"].as_str(), content });
    }
}

/// How many times as long they may make a text: what one puts there can be replaced again by a later one that looks for any
/// letter of it.
fn growth(all: &[Replacement]) -> f64 {
    let mut from = vec![1.0f64; all.len()];
    for i in (0..all.len()).rev() {
        let own = all[i].content.len() as f64 / all[i].pattern.map_or(1, str::len).max(1) as f64;
        let meets = |later: &Replacement| later.pattern.map_or(true, |pattern| pattern.chars().any(|c| all[i].content.contains(c)));
        let next = (i + 1..all.len()).filter(|j| meets(&all[*j])).map(|j| from[j]).fold(1.0, f64::max);
        from[i] = (own * next).max(1.0);
    }
    from.into_iter().fold(1.0, f64::max)
}

/// Refuses a file whose few replacements would fill any memory.
fn check_growth(json: &[u8]) -> Result<(), String> {
    const LARGEST: f64 = 1e4;
    const MOST: usize = 1000;
    // As where it is read in earnest, the last of several keys counts.
    let Ok(file) = serde_json::from_slice::<std::collections::HashMap<String, &RawValue>>(json) else {
        return Ok(()); // told by whoever reads it whole
    };
    let normalizer = file.get("normalizer").map_or("null", |raw| raw.get());
    let normalizer = serde_json::from_str(normalizer).map_err(|error| error.to_string())?;
    let mut all = vec![];
    replacements(&normalizer, &mut all);
    if all.len() > MOST {
        return Err(format!("its normalizer makes {} replacements, more than {MOST}", all.len()));
    }
    match growth(&all) {
        times if times > LARGEST => Err(format!("its normalizer may make a text {times:.0e} times as long")),
        _ => Ok(()),
    }
}

impl EtherTokenizer {
    fn load(json: &[u8], threads: usize, direction: TruncationDirection) -> Result<Self, String> {
        check_growth(json)?;
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
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
        Ok(EtherTokenizer { tokenizer, direction, pool })
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
            self.encode(text, *pair, max_length, add_special_tokens).map_err(|error| error.to_string())
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
    json: EtherText,
    threads: usize,
    truncate_left: bool,
    error: *mut EtherString,
) -> *mut EtherTokenizer {
    let direction = if truncate_left { TruncationDirection::Left } else { TruncationDirection::Right };
    guard(error, std::ptr::null_mut(), || {
        Ok(Box::into_raw(Box::new(EtherTokenizer::load(json.bytes(), threads, direction)?)))
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
