//! The bundled CNI plugin and the runtime that calls any CNI plugin.
//!
//! - [`plugin`]: ADD, DEL, CHECK, GC, STATUS and VERSION of the plugin `orlop-cni`, as a process ([`plugin::main`])
//!   or in the caller's process.
//! - [`runtime`]: reads `/etc/cni/net.d`, runs the chain of plugins it names, remembers results, undoes.
//! - [`store`]: who holds which pod address, in a log on disk that survives a crash at any instruction.
//! - [`netlink`]: the kernel's links, addresses, routes and nftables over sockets that block.
//! - [`netns`]: threads that enter a network namespace and never come back to serve anything else.
//! - [`exec`]: other plugins as processes, with a deadline.
//! - [`nodes`]: routes and tunnels to the pods of other nodes.
//! - [`spec`]: the specification's types and words.
//!
//! Architecture invariant: nothing here knows the agent, Kubernetes' API or HTTP; nothing here needs an async
//! runtime. Every call blocks its thread and says so.

pub mod exec;
pub mod netlink;
pub mod netns;
pub mod nodes;
pub mod plugin;
#[cfg(test)]
#[path = "../../tests/src/programs.rs"]
mod programs;
pub mod runtime;
pub mod spec;
pub mod store;
