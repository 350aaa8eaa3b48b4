//! The GPT-2 vocabulary and its merges, from the table in `tiktoken-rs`, so that no download is needed.

use std::collections::HashMap;

/// The end-of-text token. Smaller ids are byte strings.
pub const END_OF_TEXT: u32 = 50_256;

/// The bytes of every token except end-of-text. The index is the id.
///
/// # Panics
/// Never: the ids of the table have no gaps.
#[must_use]
pub fn vocabulary() -> Vec<Vec<u8>> {
    let bpe = tiktoken_rs::r50k_base_singleton();
    (0..END_OF_TEXT).map(|id| bpe.decode_bytes(&[id]).expect("the ids of r50k_base have no gaps")).collect()
}

/// Every merge of two tokens into a longer one, in the order in which they apply.
///
/// The table contains only the results of merges, in the order in which they were learned. The two parts of a result are
/// those that the earlier merges make of its bytes.
#[must_use]
pub fn merges(vocabulary: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let ranks: HashMap<&[u8], usize> = vocabulary.iter().map(Vec::as_slice).zip(0..).collect();
    let merged = vocabulary.iter().enumerate().filter(|(_, token)| token.len() > 1);
    merged.map(|(rank, token)| halves(token, rank, &ranks)).collect()
}

/// The `"vocab"` and `"merges"` of GPT-2's `tokenizer.json`, which writes each byte of a token as one character.
#[must_use]
pub fn model_json() -> String {
    let vocabulary = vocabulary();
    let characters = characters();
    let quoted = |token: &[u8]| {
        let written: String = token.iter().map(|&byte| characters[usize::from(byte)]).collect();
        format!("\"{}\"", written.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let entries: Vec<_> = vocabulary.iter().zip(0..).map(|(token, id)| format!("{}:{id}", quoted(token))).collect();
    let merges: Vec<_> =
        merges(&vocabulary).iter().map(|(left, right)| format!("[{},{}]", quoted(left), quoted(right))).collect();
    let last = format!("\"<|endoftext|>\":{END_OF_TEXT}");
    format!("\"vocab\":{{{},{last}}},\"merges\":[{}]", entries.join(","), merges.join(","))
}

/// The character for each byte: the byte itself if it is printable, otherwise a character from 256 on.
fn characters() -> Vec<char> {
    let mut others = '\u{100}'..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => char::from(byte),
        _ => others.next().expect("there are more characters than bytes"),
    };
    (0..=u8::MAX).map(character).collect()
}

/// Encodes `token` with the merges before `rank`, which leaves two parts.
fn halves(token: &[u8], rank: usize, ranks: &HashMap<&[u8], usize>) -> (Vec<u8>, Vec<u8>) {
    let mut cuts: Vec<usize> = (0..=token.len()).collect();
    while cuts.len() > 3 {
        let pair = |i: usize| ranks.get(&token[cuts[i - 1]..cuts[i + 1]]).filter(|&&other| other < rank);
        let first = (1..cuts.len() - 1).filter_map(|i| Some((pair(i)?, i))).min();
        let (_, cut) = first.expect("every token is made from two earlier ones");
        cuts.remove(cut);
    }
    (token[..cuts[1]].into(), token[cuts[1]..].into())
}
