//! Gives memory that has been freed back to the system, where the allocator keeps it.
//!
//! glibc's allocator keeps what a thread has freed below anything that is still in use. Invariant: no contents change, and
//! elsewhere nothing happens.
#![allow(unsafe_code, reason = "a function of the C library")]

/// Gives back what has been freed, if the allocator of the C library keeps it. It takes milliseconds.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it may be called at any time from any thread, and touches no memory that is in use.
        let _ = unsafe { malloc_trim(0) };
    }
}
