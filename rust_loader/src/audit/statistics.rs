//! One pass over all tokens: how often each occurs, those that the vocabulary lacks, and where documents end.

use std::ops::Range;
use std::sync::Mutex;

use serde::Serialize;

use super::crew::Crew;
use super::documents::{Documents, Placement};
use super::tokens::{CHUNK, Tokens, ids};
use crate::error::Result;

/// An id that the vocabulary does not have.
#[derive(Clone, Debug, Serialize)]
pub struct Foreign {
    /// The file that holds it.
    pub file: String,
    /// Its index among the tokens of that file.
    pub position: u64,
    /// The id.
    pub token: u32,
}

/// What the pass found.
pub struct Census {
    /// Where the documents are.
    pub documents: Documents,
    /// How often each id of the vocabulary occurs.
    pub counts: Vec<u64>,
    /// How many ids are outside it.
    pub foreign: u64,
    /// The first of them.
    pub first_foreign: Option<Foreign>,
}

struct Chunk {
    marks: Vec<u64>,
    foreign: u64,
    first: Option<(u64, u32)>,
}

/// Reads all tokens of `source`.
pub fn census(
    crew: &mut Crew,
    source: &dyn Tokens,
    vocab_size: u64,
    eot: Option<u32>,
    placement: Placement,
) -> Result<Census> {
    let tokens = source.count();
    let counters = Mutex::new(Vec::<Vec<u64>>::new()); // as many as there are threads
    let chunks = crew.run(tokens.div_ceil(CHUNK) as usize, |index, tally| {
        let free = counters.lock().ok().and_then(|mut counters| counters.pop());
        let mut counts = free.unwrap_or_else(|| vec![0; vocab_size as usize]);
        let start = index as u64 * CHUNK;
        let range = start..(start + CHUNK).min(tokens);
        let chunk = look(source, range.clone(), &mut counts, eot)?;
        if let Ok(mut counters) = counters.lock() {
            counters.push(counts);
        }
        let size = range.end - range.start;
        tally.advance(chunk.marks.len() as u64, size, size * source.dtype().size() as u64)?;
        Ok(chunk)
    })?;
    source.check_unchanged()?;
    let mut counts = vec![0; vocab_size as usize];
    for part in counters.into_inner().unwrap_or_default() {
        counts.iter_mut().zip(part).for_each(|(sum, count)| *sum += count);
    }
    let first = chunks.iter().find_map(|chunk| chunk.first);
    let first_foreign = first.map(|(place, token)| {
        let (file, position) = source.place(place);
        Foreign { file, position, token }
    });
    let foreign = chunks.iter().map(|chunk| chunk.foreign).sum();
    let marks = chunks.into_iter().flat_map(|chunk| chunk.marks).collect();
    Ok(Census { documents: Documents::new(marks, tokens, placement), counts, foreign, first_foreign })
}

fn look(source: &dyn Tokens, range: Range<u64>, counts: &mut [u64], eot: Option<u32>) -> Result<Chunk> {
    let mut chunk = Chunk { marks: Vec::new(), foreign: 0, first: None };
    for (place, id) in range.clone().zip(ids(source, range)?) {
        match counts.get_mut(id as usize) {
            Some(count) => *count += 1,
            None => {
                chunk.foreign += 1;
                chunk.first = chunk.first.or(Some((place, id)));
            }
        }
        if Some(id) == eot {
            chunk.marks.push(place);
        }
    }
    Ok(chunk)
}

/// How long documents are, in tokens, without their end-of-text token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// The length that this share of the documents does not exceed, in percent: 0 is the shortest, 100 the longest.
    pub percentiles: Vec<(u8, u64)>,
    /// Documents of less than twice each length, and their tokens; the lengths are 0 and the powers of two.
    pub histogram: Vec<(u64, u64, u64)>,
}

/// The distribution of the lengths of `documents`.
pub fn lengths(documents: &Documents) -> Lengths {
    let content = |index| documents.content(index);
    let mut all: Vec<u64> = (0..documents.len()).map(content).map(|range| range.end - range.start).collect();
    all.sort_unstable();
    let Some(last) = all.len().checked_sub(1) else { return Lengths::default() };
    let at = |percent: u8| (percent, all[(last as u128 * u128::from(percent) / 100) as usize]);
    let sum: u64 = all.iter().sum();
    Lengths {
        mean: sum as f64 / all.len() as f64,
        percentiles: [0, 1, 5, 25, 50, 75, 95, 99, 100].map(at).to_vec(),
        histogram: all.chunk_by(|a, b| bucket(*a) == bucket(*b)).map(bar).collect(),
    }
}

fn bar(lengths: &[u64]) -> (u64, u64, u64) {
    (bucket(lengths[0]), lengths.len() as u64, lengths.iter().sum())
}

fn bucket(length: u64) -> u64 {
    length.checked_ilog2().map_or(0, |power| 1 << power)
}
