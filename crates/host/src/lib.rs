//! Floor 7: what only an OS can do: memory of other processes, mapped files, eventfds
