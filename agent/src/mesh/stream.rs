//! Frames on QUIC streams: the header is read and judged before the body.

use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use weft_proto::frame::{Frame, FrameError, HEADER, Header, MAX_PAYLOAD};

/// A body is read in steps of this size, so that memory follows what has come
/// and not what a header promises.
const STEP: usize = 64 << 10;

/// What went wrong with a frame on a stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// Not a frame, or over its limit: the peer is broken or hostile.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream or its connection ended.
    #[error("{0}")]
    Lost(String),
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(have) => {
                Self::Frame(FrameError::Short { have, want: HEADER })
            }
            ReadExactError::ReadError(e) => Self::Lost(e.to_string()),
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// Reads the one frame of a stream and its end.
pub(super) async fn read_frame(stream: &mut RecvStream) -> Result<Frame, StreamError> {
    read_frame_within(stream, MAX_PAYLOAD).await
}

/// The same, with a limit of its own below the kind's: for who has not proved
/// itself yet, whatever kind it says it sends.
pub(super) async fn read_frame_within(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<Frame, StreamError> {
    let mut head = [0; HEADER];
    stream.read_exact(&mut head).await?;
    let header = Header::parse(&head)?;
    if header.length > limit {
        let Header { kind, length, .. } = header;
        return Err(FrameError::TooLong { kind, length, limit }.into());
    }
    let mut payload = Vec::new();
    while payload.len() < header.length {
        let most = STEP.min(header.length - payload.len());
        match stream.read_chunk(most, true).await {
            Ok(Some(chunk)) => payload.extend_from_slice(&chunk.bytes),
            Ok(None) => {
                return Err(FrameError::Short { have: payload.len(), want: header.length }.into());
            }
            Err(e) => return Err(StreamError::Lost(e.to_string())),
        }
    }
    match stream.read_chunk(1, true).await {
        Ok(None) => Ok(header.with_payload(payload)),
        Ok(Some(chunk)) => Err(FrameError::Trailing(chunk.bytes.len()).into()),
        Err(e) => Err(StreamError::Lost(e.to_string())),
    }
}

/// Writes one frame and ends the stream.
pub(super) async fn write_frame(stream: &mut SendStream, frame: &Frame) -> Result<(), StreamError> {
    stream.write_all(&frame.to_bytes()).await?;
    stream.finish().map_err(|e| StreamError::Lost(e.to_string()))
}
