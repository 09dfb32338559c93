//! The runtime of the consensus engine: Tokio's, with its tasks in the process
//! they belong to and its chance from the seed.

use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, TokioRuntime};

use super::host::{Chance, spawn};

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SimRuntime;

type T = TokioRuntime;

impl AsyncRuntime for SimRuntime {
    type JoinError = <T as AsyncRuntime>::JoinError;
    type JoinHandle<O: Send + 'static> = <T as AsyncRuntime>::JoinHandle<O>;
    type Sleep = <T as AsyncRuntime>::Sleep;
    type Instant = <T as AsyncRuntime>::Instant;
    type TimeoutError = <T as AsyncRuntime>::TimeoutError;
    type Timeout<R, F: Future<Output = R> + Send> = <T as AsyncRuntime>::Timeout<R, F>;
    type ThreadLocalRng = Chance;
    type OneshotSender<O: Send> = <T as AsyncRuntime>::OneshotSender<O>;
    type OneshotReceiver<O: Send> = <T as AsyncRuntime>::OneshotReceiver<O>;
    type OneshotReceiverError = <T as AsyncRuntime>::OneshotReceiverError;

    fn spawn<F>(future: F) -> Self::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        T::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        T::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(limit: Duration, work: F) -> Self::Timeout<R, F> {
        T::timeout(limit, work)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Self::Instant,
        work: F,
    ) -> Self::Timeout<R, F> {
        T::timeout_at(deadline, work)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        T::is_panic(error)
    }

    fn thread_rng() -> Chance {
        Chance
    }

    fn oneshot<O: Send>() -> (Self::OneshotSender<O>, Self::OneshotReceiver<O>) {
        T::oneshot()
    }
}
