//! Any tokens, vocabulary and end of text through the whole audit: it ends, and its numbers are consistent.
#![no_main]

use jaxgpt_loader::audit::tokens::{InMemory, Tokens};
use jaxgpt_loader::audit::{Options, Placement, audit};
use jaxgpt_loader::shard::format::Dtype;
use libfuzzer_sys::fuzz_target;

const SETTINGS: usize = 4;

fuzz_target!(|data: &[u8]| {
    let Some((settings, bytes)) = data.split_at_checked(SETTINGS) else { return };
    let dtype = if settings[0] & 1 == 0 { Dtype::U16 } else { Dtype::U32 };
    let cut = usize::from(settings[1]) * bytes.len() / 256 / dtype.size() * dtype.size();
    let part = |bytes: &[u8]| InMemory::new(bytes.to_vec(), dtype);
    let (train, val) = match settings[0] & 2 {
        0 => (part(bytes), None),
        _ => (part(&bytes[cut..]), Some(part(&bytes[..cut]))),
    };
    let options = Options {
        vocab_size: 1 + u64::from(settings[2]) * 8,
        eot: (settings[0] & 4 == 0).then_some(u32::from(settings[3])),
        placement: [Placement::Auto, Placement::Appended, Placement::Prepended][usize::from(settings[0] >> 3) % 3],
        threads: 0,
        folder: None,
    };
    let result = audit(&train, val.as_ref().map(|val| val as &dyn Tokens), &options, &mut |_| true)
        .expect("tokens in memory can always be read");
    let report = result.report();
    let tokens = train.count() + val.as_ref().map_or(0, Tokens::count);
    let duplicates = &report.duplicates;
    assert_eq!(report.tokens, tokens);
    assert_eq!(report.effective_unique_tokens + duplicates.exact.tokens + duplicates.near.tokens, tokens);
    assert_eq!(report.documents, result.kept().len() as u64);
    for &kept in result.kept() {
        assert_eq!(result.kept()[kept as usize], kept);
    }
    for (split, counts) in report.splits.values().zip(result.counts()) {
        assert_eq!(counts.iter().sum::<u64>() + split.out_of_vocabulary.count, split.tokens);
    }
    serde_json::to_string(report).expect("a report can be written");
});
