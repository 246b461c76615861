/* Hugging Face tokenizers and chat templates, behind a C interface. Implemented in src/.
 * Text goes in and out with its length; it must be UTF-8 and may hold NULs. A function that takes `error` reports
 * failure by its return value (NULL or false) and fills *error with one line, to be freed with ether_string_free.
 * No function panics, prints or aborts, but where memory ends, or a tokenizer takes more than any that is sound
 * (src/allocator.rs): that ends the process with one line and exit code 1. A tokenizer may be used by several
 * threads at once. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Borrowed text. */
typedef struct EtherText {
    const char* data;
    size_t size;
} EtherText;

/* Owned text. */
typedef struct EtherString {
    char* data;
    size_t size;
} EtherString;

/* `count` encodings in a row: tokens offsets[i] .. offsets[i + 1] - 1 of ids and type_ids belong to text i. */
typedef struct EtherEncodings {
    size_t count;
    size_t* offsets; /* count + 1 */
    int64_t* ids;
    int64_t* type_ids;
    bool* truncated; /* count */
} EtherEncodings;

typedef struct EtherTokenizer EtherTokenizer;

void ether_string_free(EtherString string);
void ether_encodings_free(EtherEncodings encodings);

/* `json` is the content of a tokenizer.json; its padding and truncation are switched off. `name`, which need not be
 * UTF-8, is what messages call it. Batches are encoded by `threads` threads of the tokenizer's own; long texts lose
 * their start rather than their end if truncate_left. */
EtherTokenizer* ether_tokenizer_load(EtherText name, EtherText json, size_t threads, bool truncate_left,
                                     EtherString* error);
void ether_tokenizer_free(EtherTokenizer* tokenizer);

size_t ether_tokenizer_vocab_size(const EtherTokenizer* tokenizer);
/* -1 if there is no such token. */
int64_t ether_tokenizer_token_id(const EtherTokenizer* tokenizer, EtherText token);

/* `pairs` is NULL or has as many entries as `texts`. max_length counts special tokens; 0 means no limit. */
bool ether_tokenizer_encode(const EtherTokenizer* tokenizer, const EtherText* texts, const EtherText* pairs,
                            size_t count, size_t max_length, bool add_special_tokens, EtherEncodings* out,
                            EtherString* error);
/* Ids without a token are skipped. */
bool ether_tokenizer_decode(const EtherTokenizer* tokenizer, const uint32_t* ids, size_t count, bool skip_special,
                            EtherString* out, EtherString* error);

/* Renders a Jinja chat template with `messages`, a JSON array. */
bool ether_render_chat(EtherText chat_template, EtherText messages, bool add_generation_prompt, EtherText bos,
                       EtherText eos, EtherString* out, EtherString* error);

#ifdef __cplusplus
}
#endif
