//! One pass over all tokens: the frequency of each id, ids outside the vocabulary, and the ends of documents.

use std::ops::Range;
use std::sync::Mutex;

use serde::Serialize;

use super::documents::{Documents, Placement};
use super::tokens::{CHUNK, Tokens, ids};
use crate::error::Result;
use crate::workers::Workers;

/// An id outside the vocabulary.
#[derive(Clone, Debug, Serialize)]
pub struct OutOfVocabId {
    /// The file that contains it.
    pub file: String,
    /// Its index in that file, in tokens.
    pub position: u64,
    /// The id.
    pub token: u32,
}

/// The result of the pass.
pub(crate) struct TokenStats {
    /// The ranges of the documents.
    pub documents: Documents,
    /// The number of occurrences of each id of the vocabulary.
    pub counts: Vec<u64>,
    /// The number of tokens outside the vocabulary.
    pub out_of_vocab: u64,
    /// The first of them.
    pub first_out_of_vocab: Option<OutOfVocabId>,
}

struct Chunk {
    end_of_text: Vec<u64>,
    out_of_vocab: u64,
    first_out_of_vocab: Option<(u64, u32)>,
}

/// Reads all tokens of `source`. `eot` is the end-of-text token.
pub(crate) fn token_stats(
    workers: &mut Workers,
    source: &dyn Tokens,
    vocab_size: u64,
    eot: Option<u32>,
    placement: Placement,
) -> Result<TokenStats> {
    let tokens = source.count();
    let free_counts = Mutex::new(Vec::<Vec<u64>>::new()); // one per thread
    let chunks = workers.run(tokens.div_ceil(CHUNK) as usize, |index, counters| {
        let free = free_counts.lock().ok().and_then(|mut free| free.pop());
        let mut counts = free.unwrap_or_else(|| vec![0; vocab_size as usize]);
        let start = index as u64 * CHUNK;
        let range = start..(start + CHUNK).min(tokens);
        let chunk = scan(source, range.clone(), &mut counts, eot)?;
        if let Ok(mut free) = free_counts.lock() {
            free.push(counts);
        }
        let size = range.end - range.start;
        counters.advance(chunk.end_of_text.len() as u64, size, size * source.dtype().size() as u64)?;
        Ok(chunk)
    })?;
    source.check_unchanged()?;
    let mut counts = vec![0; vocab_size as usize];
    for partial in free_counts.into_inner().unwrap_or_default() {
        counts.iter_mut().zip(partial).for_each(|(sum, count)| *sum += count);
    }
    let first = chunks.iter().find_map(|chunk| chunk.first_out_of_vocab);
    let first_out_of_vocab = first.map(|(position, token)| {
        let (file, position) = source.file_position(position);
        OutOfVocabId { file, position, token }
    });
    let out_of_vocab = chunks.iter().map(|chunk| chunk.out_of_vocab).sum();
    let end_of_text = chunks.into_iter().flat_map(|chunk| chunk.end_of_text).collect();
    Ok(TokenStats {
        documents: Documents::new(end_of_text, tokens, placement),
        counts,
        out_of_vocab,
        first_out_of_vocab,
    })
}

fn scan(source: &dyn Tokens, range: Range<u64>, counts: &mut [u64], eot: Option<u32>) -> Result<Chunk> {
    let mut chunk = Chunk { end_of_text: Vec::new(), out_of_vocab: 0, first_out_of_vocab: None };
    for (position, id) in range.clone().zip(ids(source, range)?) {
        match counts.get_mut(id as usize) {
            Some(count) => *count += 1,
            None => {
                chunk.out_of_vocab += 1;
                chunk.first_out_of_vocab = chunk.first_out_of_vocab.or(Some((position, id)));
            }
        }
        if Some(id) == eot {
            chunk.end_of_text.push(position);
        }
    }
    Ok(chunk)
}

/// The distribution of document lengths, in tokens without the end-of-text token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// Percentiles: the percentage, and the length that this percentage of the documents does not exceed. 0 is the
    /// shortest, 100 the longest.
    pub percentiles: Vec<(u8, u64)>,
    /// Bins: a length (0 or a power of two), the number of documents from that length to less than twice of it, and
    /// their tokens.
    pub histogram: Vec<(u64, u64, u64)>,
}

/// The distribution of the lengths of `documents`.
pub(crate) fn lengths(documents: &Documents) -> Lengths {
    let content = |index| documents.content(index);
    let mut all: Vec<u64> = (0..documents.len()).map(content).map(|range| range.end - range.start).collect();
    all.sort_unstable();
    let Some(last) = all.len().checked_sub(1) else { return Lengths::default() };
    let at = |percent: u8| (percent, all[(last as u128 * u128::from(percent) / 100) as usize]);
    let sum: u64 = all.iter().sum();
    Lengths {
        mean: sum as f64 / all.len() as f64,
        percentiles: [0, 1, 5, 25, 50, 75, 95, 99, 100].map(at).to_vec(),
        histogram: all.chunk_by(|a, b| bin_start(*a) == bin_start(*b)).map(bin).collect(),
    }
}

fn bin(lengths: &[u64]) -> (u64, u64, u64) {
    (bin_start(lengths[0]), lengths.len() as u64, lengths.iter().sum())
}

fn bin_start(length: u64) -> u64 {
    length.checked_ilog2().map_or(0, |power| 1 << power)
}
