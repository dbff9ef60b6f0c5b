//! Giving freed memory back to the kernel.
#![allow(unsafe_code)] // Reason: malloc_trim is a C function.

/// Returns the free pages of the heap. There is one supervisor for each pod, and it idles for nearly all of its life.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only gives back pages that hold no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
    // musl's allocator gives back whole free groups by itself.
}
