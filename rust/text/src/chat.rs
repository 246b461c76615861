//! Chat templates: Jinja as transformers sets it up.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{context, escape_formatter, Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::ffi::{guard, EtherString, EtherText};

fn render(
    source: &str,
    messages: &str,
    add_generation_prompt: bool,
    bos: &str,
    eos: &str,
) -> Result<String, String> {
    let messages: serde_json::Value =
        serde_json::from_str(messages).map_err(|error| format!("messages: {error}"))?;
    let source = generation_blocks_as_if(source);

    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_unknown_method_callback(unknown_method_callback);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool if value.is_true() => out.write_str("True").map_err(Error::from),
        ValueKind::Bool => out.write_str("False").map_err(Error::from),
        _ => escape_formatter(out, state, value),
    });
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", strftime_now);

    let context = context! {
        messages => messages,
        tools => Value::from(()),
        documents => Value::from(()),
        add_generation_prompt => add_generation_prompt,
        bos_token => bos,
        eos_token => eos,
    };
    env.template_from_named_str("chat_template", &source)
        .and_then(|template| template.render(context))
        .map_err(|error| error.to_string())
}

/// Turns `{% generation %}`, with which transformers marks the assistant's text, into a block that Jinja knows.
fn generation_blocks_as_if(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(close) = rest[open..].find("%}").map(|close| open + close) else { break };
        let tag = &rest[open + 2..close];
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..open + 2]);
        match word {
            "generation" => out.push_str(&tag.replace(word, " if true ")),
            "endgeneration" => out.push_str(&tag.replace(word, " endif ")),
            _ => out.push_str(tag),
        }
        rest = &rest[close..];
    }
    out + rest
}

/// Python's json.dumps without ASCII escapes; Jinja's own filter would escape for HTML.
fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii=true is not supported"));
    }
    options.assert_all_used()?;

    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, SpacedFormatter)),
    }
    .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}")))?;
    String::from_utf8(out).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// One line with Python's separators, ", " and ": ".
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    write!(out, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format {format:?}"))
    })?;
    Ok(out)
}

/// # Safety
/// See ether_text.h.
#[no_mangle]
pub unsafe extern "C" fn ether_render_chat(
    chat_template: EtherText,
    messages: EtherText,
    add_generation_prompt: bool,
    bos: EtherText,
    eos: EtherText,
    out: *mut EtherString,
    error: *mut EtherString,
) -> bool {
    guard(error, false, || {
        let text = render(
            chat_template.text("the template")?,
            messages.text("messages")?,
            add_generation_prompt,
            bos.text("the bos token")?,
            eos.text("the eos token")?,
        )?;
        out.write(EtherString::from(text));
        Ok(true)
    })
}
