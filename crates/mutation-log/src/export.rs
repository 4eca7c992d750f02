//! Saves the records of one copy outside the log.

use std::path::Path;

use crate::format::{self, RecordHeader, SEGMENT_HEADER_LEN};
use crate::{LogError, Record};

/// Writes `records` as a segment (number 1 of a log whose id is the copy's), without batches: a reader finds
/// each record by itself.
pub(crate) fn write(
    to: &Path,
    copy_id: u64,
    records: impl Iterator<Item = Record>,
) -> Result<usize, LogError> {
    use std::io::Write;

    let seed = format::seed(copy_id, 1);
    let file = std::fs::File::create(to).map_err(LogError::io("create the export file"))?;
    let mut out = std::io::BufWriter::new(file);
    let mut offset = SEGMENT_HEADER_LEN as u64;
    out.write_all(&format::encode_segment_header(copy_id, 1))
        .map_err(LogError::io("write the export file"))?;
    let (mut count, mut buf) = (0u32, Vec::new());
    for record in records {
        count += 1;
        buf.clear();
        // The chain of the copy begins anew: what was superseded is not exported.
        let header = RecordHeader::of(&record, count, count, record.mutation.decree.prev());
        header.encode(&mut buf, seed, offset, &record.mutation.body);
        out.write_all(&buf).map_err(LogError::io("write the export file"))?;
        offset += buf.len() as u64;
    }
    let file = out.into_inner().map_err(|e| LogError::io("write the export file")(e.into_error()))?;
    file.sync_all().map_err(LogError::io("sync the export file"))?;
    if let Some(parent) = to.parent() {
        let synced = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(LogError::io("sync the export's directory"))?;
    }
    Ok(count as usize)
}
