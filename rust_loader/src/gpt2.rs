//! The GPT-2 vocabulary and its merges, from the table that `tiktoken-rs` carries: no download is needed.

use std::collections::HashMap;

/// Ids below this are byte strings; this one is the end-of-text token.
pub const END_OF_TEXT: u32 = 50_256;

/// The bytes of every token but end-of-text; the index is the id.
pub fn vocabulary() -> Vec<Vec<u8>> {
    let bpe = tiktoken_rs::r50k_base_singleton();
    (0..END_OF_TEXT).map(|id| bpe.decode_bytes(&[id]).expect("r50k_base has ids without gaps")).collect()
}

/// Every merge of two tokens into a longer one, the one to apply first in front.
///
/// The table holds only the results of merges, in the order in which they were learnt. The two parts of a result are
/// what the earlier merges make of its bytes.
pub fn merges(vocabulary: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let ranks: HashMap<&[u8], usize> = vocabulary.iter().map(Vec::as_slice).zip(0..).collect();
    let merged = vocabulary.iter().enumerate().filter(|(_, token)| token.len() > 1);
    merged.map(|(rank, token)| halves(token, rank, &ranks)).collect()
}

/// `"vocab"` and `"merges"` of GPT-2's `tokenizer.json`, which writes each byte of a token as one character.
pub fn model_json() -> String {
    let (vocabulary, characters) = (vocabulary(), characters());
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

/// The character for each byte: itself where it is printable, or one from 256 on.
fn characters() -> Vec<char> {
    let mut others = '\u{100}'..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => char::from(byte),
        _ => others.next().expect("there are more characters than bytes"),
    };
    (0..=u8::MAX).map(character).collect()
}

/// Byte-pair encoding of `token` with the merges below `rank`, which leaves two parts.
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
