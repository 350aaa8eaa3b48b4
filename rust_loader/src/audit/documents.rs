//! The documents of a stream: the ranges between its end-of-text tokens.

use std::ops::Range;

use super::tokens::{CHUNK, Text, Tokens, ids};
use crate::error::{Error, Result};

/// The position of end-of-text tokens relative to their documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Before its document if the stream begins with one and does not end with one, otherwise after it.
    #[default]
    Auto,
    /// After its document.
    Appended,
    /// Before its document.
    Prepended,
}

/// The documents of one stream, in eight bytes each.
#[derive(Debug)]
pub(crate) struct Documents {
    /// The index of every end-of-text token.
    marks: Vec<u64>,
    tokens: u64,
    prepended: bool,
}

impl Documents {
    /// The documents of `tokens` tokens with end-of-text tokens at `marks`.
    pub(crate) fn new(marks: Vec<u64>, tokens: u64, placement: Placement) -> Self {
        let first = marks.first() == Some(&0);
        let last = marks.last().is_some_and(|&mark| mark + 1 == tokens);
        let prepended = match placement {
            Placement::Auto => first && !last,
            Placement::Appended => false,
            Placement::Prepended => true,
        };
        Documents { marks, tokens, prepended }
    }

    /// The number of documents, including empty ones.
    pub(crate) fn len(&self) -> usize {
        self.marks.len() + usize::from(self.has_unmarked())
    }

    /// Returns true if an end-of-text token is missing: at the end, or at the beginning if they precede documents.
    pub(crate) fn has_unmarked(&self) -> bool {
        let gap = if self.prepended { 0 } else { self.marks.len() };
        !self.gap(gap).is_empty()
    }

    /// Returns true if end-of-text tokens precede their documents.
    pub(crate) fn prepended(&self) -> bool {
        self.prepended
    }

    /// The number of end-of-text tokens.
    pub(crate) fn marks(&self) -> u64 {
        self.marks.len() as u64
    }

    /// The number of end-of-text tokens that directly follow another one.
    pub(crate) fn doubled(&self) -> u64 {
        self.marks.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() as u64
    }

    /// The tokens of a document, without its end-of-text token.
    pub(crate) fn content(&self, index: usize) -> Range<u64> {
        let skipped = self.prepended && !self.has_unmarked();
        self.gap(index + usize::from(skipped))
    }

    /// The number of tokens of a document, including its end-of-text token if there is one.
    pub(crate) fn size(&self, index: usize) -> u64 {
        let content = self.content(index);
        let unmarked = self.has_unmarked() && index == if self.prepended { 0 } else { self.marks.len() };
        content.end - content.start + u64::from(!unmarked)
    }

    /// The tokens before the end-of-text token number `index`, or after the last one.
    fn gap(&self, index: usize) -> Range<u64> {
        let start = index.checked_sub(1).map_or(0, |before| self.marks[before] + 1);
        start..self.marks.get(index).copied().unwrap_or(self.tokens)
    }
}

/// One split of the corpus.
pub(crate) struct Split<'a> {
    /// "train" or "val".
    pub name: &'static str,
    /// Its tokens.
    pub tokens: &'a dyn Tokens,
    /// Its documents.
    pub documents: Documents,
    /// The number of its first document in the corpus.
    pub first: usize,
}

/// All documents, numbered consecutively: those of train, then those of val.
pub(crate) struct Corpus<'a> {
    splits: Vec<Split<'a>>,
}

impl<'a> Corpus<'a> {
    /// The documents of these streams. More than 2³² − 1 documents are an error (D030).
    pub(crate) fn new(parts: Vec<(&'static str, &'a dyn Tokens, Documents)>) -> Result<Self> {
        let mut first = 0;
        let mut splits = Vec::new();
        for (name, tokens, documents) in parts {
            let split = Split { name, tokens, documents, first };
            first += split.documents.len();
            splits.push(split);
        }
        if first > u32::MAX as usize {
            return Err(Error::TooManyDocuments { count: first as u64 });
        }
        Ok(Corpus { splits })
    }

    /// The splits.
    pub(crate) fn splits(&self) -> &[Split<'a>] {
        &self.splits
    }

    /// The number of documents.
    pub(crate) fn len(&self) -> usize {
        self.splits.last().map_or(0, |split| split.first + split.documents.len())
    }

    /// The split of a document, and its number in that split.
    pub(crate) fn locate(&self, document: usize) -> (&Split<'a>, usize) {
        // of several splits that begin there, all but the last are empty
        let split = &self.splits[self.splits.partition_point(|split| split.first <= document) - 1];
        (split, document - split.first)
    }

    /// Returns true for a validation document.
    pub(crate) fn is_val(&self, document: usize) -> bool {
        self.locate(document).0.name == "val"
    }

    /// The tokens of a document.
    pub(crate) fn text(&self, document: usize) -> Text<'a> {
        let (split, index) = self.locate(document);
        Text::stored(split.tokens, split.documents.content(index))
    }

    /// The number of tokens of a document, including its end-of-text token.
    pub(crate) fn size(&self, document: usize) -> u64 {
        let (split, index) = self.locate(document);
        split.documents.size(index)
    }

    /// Ranges of documents of one split, each with about a million tokens or one longer document.
    pub(crate) fn batches(&self) -> Vec<Range<usize>> {
        let mut batches = Vec::new();
        for split in &self.splits {
            let mut start = 0;
            let mut batch_tokens = 0;
            for index in 0..split.documents.len() {
                let tokens = split.documents.size(index);
                if index > start && batch_tokens + tokens > CHUNK {
                    batches.push(split.first + start..split.first + index);
                    start = index;
                    batch_tokens = 0;
                }
                batch_tokens += tokens;
            }
            batches.push(split.first + start..split.first + split.documents.len());
        }
        batches
    }

    /// Calls `visit` with every document of a batch. Short documents are read together.
    pub(crate) fn visit(&self, batch: Range<usize>, visit: &mut dyn FnMut(usize, &Text) -> Result<()>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (split, first) = self.locate(batch.start);
        let content = |document: usize| split.documents.content(first + document - batch.start);
        let all = content(batch.start).start..content(batch.end - 1).end;
        if all.end - all.start > 2 * CHUNK {
            return batch.clone().try_for_each(|document| visit(document, &self.text(document)));
        }
        let ids = ids(split.tokens, all.clone())?;
        batch.clone().try_for_each(|document| {
            let range = content(document);
            let tokens = &ids[(range.start - all.start) as usize..(range.end - all.start) as usize];
            visit(document, &Text::loaded(split.tokens, range, tokens))
        })
    }
}
