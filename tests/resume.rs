//! Runs that are killed, stopped, damaged and gone on with, through the binary: what comes out is,
//! byte for byte, what comes out of a run that nothing happened to.

#[path = "common/checkpoint.rs"]
pub mod checkpoint;
#[path = "pipeline/place.rs"]
pub mod place;

#[path = "resume/around.rs"]
mod around;
#[path = "resume/damage.rs"]
mod damage;
#[path = "resume/heard.rs"]
mod heard;
#[path = "resume/killed.rs"]
mod killed;
#[path = "resume/later.rs"]
mod later;
#[path = "resume/moved.rs"]
mod moved;
#[path = "resume/process.rs"]
pub mod process;
#[path = "resume/stopped.rs"]
mod stopped;
#[path = "resume/unhealthy.rs"]
mod unhealthy;
#[path = "resume/vocabulary.rs"]
mod vocabulary;
