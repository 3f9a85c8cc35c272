// Package canary tries, from within a worker's walls, what a worker must not be able
// to do, and says what became of it. It is how an operator sees which wall stands on
// a machine: by attempts that fail, not by settings that were read.
//
// Every attempt is harmless where it succeeds: it creates, sends and changes nothing
// that stays, and names a target of the host's own.
//
// It knows system calls. It must not know what their outcome should be; package
// doctor does.
package canary

// An Attempt is one thing to try, by name; some take an argument of the host, such as
// an address that it listens on.
type Attempt string

// Attempts. Those with a comment take an argument.
const (
	TCP         Attempt = "tcp"         // address
	UDP         Attempt = "udp"         // address
	MPTCP       Attempt = "mptcp"       // address
	RawIP       Attempt = "raw-ip"      // a socket that could send any packet
	Packet      Attempt = "packet"      // a socket below IP
	Netlink     Attempt = "netlink"     // a socket to the kernel's network settings
	VSock       Attempt = "vsock"       // a socket to the machine's host
	Abstract    Attempt = "abstract"    // name of a socket of the host
	UnixPath    Attempt = "unix-path"   // path of a socket of the host
	SocketPair  Attempt = "socketpair"  // any socket at all
	IOUring     Attempt = "io_uring"    // system calls that a filter does not see
	Exec        Attempt = "exec"        // another program in this process's place
	Process     Attempt = "process"     // a process more
	Ptrace      Attempt = "ptrace"      // process id: into the memory of another process
	ReadMemory  Attempt = "read-memory" // process id: its memory without tracing it
	Signal      Attempt = "signal"      // process id
	BPF         Attempt = "bpf"         // programs in the kernel
	Namespaces  Attempt = "namespaces"  // a user namespace with all capabilities
	Mount       Attempt = "mount"       // path of a directory
	SetUID      Attempt = "setuid"      // root
	ReadSystem  Attempt = "read-system" // /etc/passwd
	ReadHost    Attempt = "read-host"   // path of a file that is the daemon's
	ReadModule  Attempt = "read-module" // the worker's own directory
	WriteTemp   Attempt = "write-temp"  // path of a file
	WriteExec   Attempt = "write-exec"  // memory that is writable and executable
	MemoryFile  Attempt = "memory-file" // a file that only exists in memory
	Descriptors Attempt = "descriptors" // anything that was inherited beyond 0 to 3
	Threads     Attempt = "threads"     // number: more threads than a worker may have
	Memory      Attempt = "memory"      // MiB: more memory than a worker may have
)
