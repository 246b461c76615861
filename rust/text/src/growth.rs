//! How much longer a tokenizer.json makes texts: a few replacements of replacements would fill any memory.

use serde_json::value::RawValue;
use serde_json::Value;

/// A step of a normalizer or pre-tokenizer that changes a text: what it looks for, what it puts there (None: anything), and
/// by how much one pass lengthens a text at most.
struct Step<'a> {
    looks_for: Option<&'a str>,
    makes: Option<&'a str>,
    growth: f64,
}

/// Of Unicode's compatible forms.
const LONGEST_FORM: f64 = 11.0;

/// Whether a regular expression may match between two letters, and so insert without end; some that cannot are called so.
fn may_match_nothing(expression: &str) -> bool {
    expression.is_empty()
        || expression.contains(['*', '?', '^', '$', '|', '('])
        || ["{0", "{,", "\\b", "\\B", "\\A", "\\z", "\\Z", "\\G", "\\K"]
            .iter()
            .any(|part| expression.contains(part))
}

fn replacement<'a>(node: &'a Value, content: &'a str) -> Step<'a> {
    let expression = node["pattern"]["Regex"].as_str().unwrap_or_default();
    let plain = !expression.is_empty() && !expression.contains(|c| "\\.[](){}*+?^$|".contains(c));
    let literal = node["pattern"]["String"].as_str().or(plain.then_some(expression));
    let length = content.len() as f64;
    let growth = match literal {
        Some("") => 1.0 + length,
        Some(literal) => length / literal.len() as f64,
        None if may_match_nothing(expression) => 1.0 + length,
        None => length,
    };
    Step { looks_for: literal.filter(|literal| !literal.is_empty()), makes: Some(content), growth }
}

/// Those of a normalizer or pre-tokenizer, in order; old files leave out the type.
fn steps<'a>(node: &'a Value, found: &mut Vec<Step<'a>>) {
    let all = node["normalizers"].as_array().or_else(|| node["pretokenizers"].as_array());
    if let Some(all) = all {
        all.iter().for_each(|one| steps(one, found));
    } else if let Some(content) = node["content"].as_str() {
        found.push(replacement(node, content));
    } else if let Some(kind) = node["type"].as_str() {
        let growth = match kind {
            "ByteLevel" => 2.0,      // a byte as a letter of its own
            "BertNormalizer" => 2.0, // blanks around ideographs
            "Lowercase" => 1.5,
            // The next one finds little to do.
            "NFD" | "NFKC" | "NFKD" | "Precompiled"
                if !found.iter().any(|step| step.growth == LONGEST_FORM) =>
            {
                LONGEST_FORM
            }
            _ => 1.0,
        };
        found.push(Step { looks_for: None, makes: None, growth });
    }
}

/// How many times as long they may make a text: what one puts there can be replaced again by a later one that looks for any
/// letter of it.
fn growth(all: &[Step]) -> f64 {
    let mut from = vec![1.0f64; all.len()];
    for i in (0..all.len()).rev() {
        let meets = |later: &Step| match (later.looks_for, all[i].makes) {
            (Some(pattern), Some(content)) => pattern.chars().any(|c| content.contains(c)),
            _ => true,
        };
        let next = (i + 1..all.len()).filter(|j| meets(&all[*j])).map(|j| from[j]).fold(1.0, f64::max);
        from[i] = (all[i].growth * next).max(1.0);
    }
    from.into_iter().fold(1.0, f64::max)
}

/// Refuses a file that makes texts longer by more than any tokenizer that is meant well. What it does not see ends at the
/// allocator's budget, which can say less.
pub fn check(json: &[u8]) -> Result<(), String> {
    const LARGEST: f64 = 1e7;
    const MOST: usize = 1000;
    // As where it is read in earnest, the last of several keys counts.
    let Ok(file) = serde_json::from_slice::<std::collections::HashMap<String, &RawValue>>(json) else {
        return Ok(()); // told by whoever reads it whole
    };
    let read = |key| {
        serde_json::from_str::<Value>(file.get(key).map_or("null", |raw| raw.get()))
            .map_err(|error| error.to_string())
    };
    let (normalizer, pre_tokenizer) = (read("normalizer")?, read("pre_tokenizer")?);
    let mut all = vec![];
    steps(&normalizer, &mut all);
    steps(&pre_tokenizer, &mut all);
    if all.len() > MOST {
        return Err(format!("it changes a text in {} steps, more than {MOST}", all.len()));
    }
    match growth(&all) {
        times if times > LARGEST => Err(format!("it may make a text {times:.0e} times as long")),
        _ => Ok(()),
    }
}
