//! A topology as the files that other programs read.
