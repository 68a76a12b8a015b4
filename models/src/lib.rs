//! Known models: where they come from, and how to fetch them.
