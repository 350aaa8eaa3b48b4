//! Documents: what lies between the end-of-text tokens of a stream.

use std::ops::Range;

use super::tokens::{CHUNK, Text, Tokens, ids};
use crate::error::{Error, Result};

/// On which side of its document an end-of-text token stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// In front if the stream begins with one and does not end with one, else behind.
    #[default]
    Auto,
    /// Behind.
    Appended,
    /// In front.
    Prepended,
}

/// The documents of one stream: eight bytes for each.
#[derive(Debug)]
pub struct Documents {
    /// The place of every end-of-text token.
    marks: Vec<u64>,
    tokens: u64,
    prepended: bool,
}

impl Documents {
    /// The documents of `tokens` tokens with end-of-text tokens at `marks`.
    pub fn new(marks: Vec<u64>, tokens: u64, placement: Placement) -> Self {
        let (first, last) = (marks.first() == Some(&0), marks.last().is_some_and(|&mark| mark + 1 == tokens));
        let prepended = match placement {
            Placement::Auto => first && !last,
            Placement::Appended => false,
            Placement::Prepended => true,
        };
        Documents { marks, tokens, prepended }
    }

    /// How many there are, empty ones included.
    pub fn len(&self) -> usize {
        self.marks.len() + usize::from(self.has_unmarked())
    }

    /// Whether an end-of-text token is missing: at the end, or at the beginning where they stand in front.
    pub fn has_unmarked(&self) -> bool {
        let gap = if self.prepended { 0 } else { self.marks.len() };
        !self.gap(gap).is_empty()
    }

    /// Whether end-of-text tokens stand in front of their documents.
    pub fn prepended(&self) -> bool {
        self.prepended
    }

    /// How many end-of-text tokens there are.
    pub fn marks(&self) -> u64 {
        self.marks.len() as u64
    }

    /// How many of them follow another at once.
    pub fn doubled(&self) -> u64 {
        self.marks.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() as u64
    }

    /// The tokens of a document, without its end-of-text token.
    pub fn content(&self, index: usize) -> Range<u64> {
        let skipped = self.prepended && !self.has_unmarked();
        self.gap(index + usize::from(skipped))
    }

    /// How many tokens a document has, with its end-of-text token if there is one.
    pub fn size(&self, index: usize) -> u64 {
        let content = self.content(index);
        let unmarked = self.has_unmarked() && index == if self.prepended { 0 } else { self.marks.len() };
        content.end - content.start + u64::from(!unmarked)
    }

    /// What lies before the end-of-text token number `index`, or behind the last.
    fn gap(&self, index: usize) -> Range<u64> {
        let start = index.checked_sub(1).map_or(0, |before| self.marks[before] + 1);
        start..self.marks.get(index).copied().unwrap_or(self.tokens)
    }
}

/// One split of the corpus, and the number of its first document in the whole.
pub struct Split<'a> {
    /// "train" or "val".
    pub name: &'static str,
    /// Where its tokens are.
    pub tokens: &'a dyn Tokens,
    /// What they are.
    pub documents: Documents,
    /// The number of its first document.
    pub first: usize,
}

/// All documents, numbered through: those of train, then those of val.
pub struct Corpus<'a> {
    splits: Vec<Split<'a>>,
}

impl<'a> Corpus<'a> {
    /// The documents of these streams. More than 2³² are an error.
    pub fn new(parts: Vec<(&'static str, &'a dyn Tokens, Documents)>) -> Result<Self> {
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
    pub fn splits(&self) -> &[Split<'a>] {
        &self.splits
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.splits.last().map_or(0, |split| split.first + split.documents.len())
    }

    /// The split of a document, and its number there.
    pub fn locate(&self, document: usize) -> (&Split<'a>, usize) {
        let place = self.splits.partition_point(|split| split.first <= document) - 1;
        // of several splits that begin there, all but the last are empty
        (&self.splits[place], document - self.splits[place].first)
    }

    /// Whether a document is for validation.
    pub fn is_val(&self, document: usize) -> bool {
        self.locate(document).0.name == "val"
    }

    /// The tokens of a document.
    pub fn text(&self, document: usize) -> Text<'a> {
        let (split, index) = self.locate(document);
        Text::stored(split.tokens, split.documents.content(index))
    }

    /// How many tokens a document has, with its end-of-text token.
    pub fn size(&self, document: usize) -> u64 {
        let (split, index) = self.locate(document);
        split.documents.size(index)
    }

    /// Runs of documents of one split, each of about a million tokens or of one longer document.
    pub fn batches(&self) -> Vec<Range<usize>> {
        let mut batches = Vec::new();
        for split in &self.splits {
            let (mut start, mut size) = (0, 0);
            for index in 0..split.documents.len() {
                let more = split.documents.size(index);
                if index > start && size + more > CHUNK {
                    batches.push(split.first + start..split.first + index);
                    (start, size) = (index, 0);
                }
                size += more;
            }
            batches.push(split.first + start..split.first + split.documents.len());
        }
        batches
    }

    /// Calls `visit` with every document of a batch; short ones are read together.
    pub fn visit(&self, batch: Range<usize>, visit: &mut dyn FnMut(usize, &Text) -> Result<()>) -> Result<()> {
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
            let part = &ids[(range.start - all.start) as usize..(range.end - all.start) as usize];
            visit(document, &Text::loaded(split.tokens, range, part))
        })
    }
}
