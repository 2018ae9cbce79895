//! Two agents over real gRPC, mTLS, tunnel and journals, with a simulated hypervisor below: what a controller asks
//! for, what it must never get, and what is true after a death at each point.

mod adjust;
mod certificates;
mod checks;
mod copies;
mod copy_progress;
mod crashes;
mod ends;
mod every_call;
mod expiry;
mod flipped;
mod full_disk;
mod hand_overs;
mod interference;
mod late;
mod moves;
mod network;
mod node;
mod offline;
mod offline_ends;
mod offline_room;
mod offline_shut_down;
mod overrides;
mod pki;
mod policy;
mod post_copy;
mod reboots;
mod refusals;
mod repeats;
mod resolve;
mod scene;
mod stand_in;
mod starting;
mod still;
mod undo;
mod verdicts;
