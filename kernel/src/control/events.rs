//! The events channel: RUNTIME_ERROR for every store that fails, from the moment a client opened the channel.

use embassy_futures::select::{Either, select};
use protocol::tapdisk::{Body, Dialect, Message, Reason, Response};
use xen::port::Xen;
use xen::vchan::Broken;

use super::channel::Line;

/// Tells failures until the client is gone. In blktap's dialect; RUNTIME_ERROR has the same number in both, and the
/// fields that are not zero lie at the same places.
pub async fn tell<X: Xen>(line: &Line<'_, X>) -> Result<(), Broken> {
    let failures = &line.shared.minors.failures;
    let (mut at, mut bell) = (failures.end(), failures.bell.listen());
    loop {
        while let Some((failure, missed)) = failures.next(&mut at) {
            let times = failure.times;
            let reason = match (times, missed) {
                (1, 0) => Reason::of(format_args!("the store failed: {}", failure.error)),
                (_, 0) => Reason::of(format_args!("the store failed {times} times: {}", failure.error)),
                _ => Reason::of(format_args!("the store failed: {}; {missed} events were lost", failure.error)),
            };
            let response = Response::failed(failure.error.errno(), reason.text());
            let message = Message { cookie: failure.minor, body: Body::RuntimeError(response) };
            line.send(Dialect::Blktap, &message).await?;
        }
        if let Either::Second(()) = select(bell.wait(), line.gone()).await {
            return Ok(());
        }
    }
}
