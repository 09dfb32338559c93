//! Panics of tasks: the runtime would only note them.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static FIRST: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Notes the first panic of this thread while it lives.
pub(crate) struct Watch(());

impl Watch {
    pub(crate) fn new() -> Self {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let watched = FIRST.with_borrow_mut(|first| {
                    let Some(first) = first else { return false };
                    first.get_or_insert_with(|| info.to_string());
                    true
                });
                if !watched {
                    before(info);
                }
            }));
        });
        FIRST.set(Some(None));
        Self(())
    }

    /// The first one.
    pub(crate) fn first(&self) -> Option<String> {
        FIRST.with_borrow(|first| first.clone().flatten()).map(|text| format!("panic: {text}"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        FIRST.set(None);
    }
}
