// Package confine makes a worker process give up everything but one descriptor,
// before it reads a byte that derives from an upload.
//
// Laws, each with its test:
//
//   - The order is: descriptors, limits, not dumpable, Landlock, the worker's own files,
//     no_new_privs, filter; only then is a file or a frame read (TestLinuxAttempts).
//   - A build with cgo, where Landlock reaches one thread only, goes on in a second image
//     that began within it, and only if it stands there (TestLinuxSecondImage).
//   - No socket call is in the list; the one descriptor to the host is used with read
//     and write (TestLinuxAttempts). A plugin can listen on a Unix stream socket and
//     accept; it has no connect and no datagram (TestLinuxPluginAttempts).
//   - A plugin's program starts with its confinement around it: it inherits it from the
//     launcher and cannot leave it out (TestLinuxPluginAttempts).
//   - A plugin's program is told of its parent's death as its launcher is (TestLinuxPluginDies).
//   - A worker opens its own files by their names before the filter stands, and nothing
//     after it: each call that takes a path is forbidden, also while a module is loaded or
//     compiled (TestLinuxAttempts, TestLinuxCompileMode).
//   - What is forbidden fails with EPERM and the host is told before the caller is;
//     clone3 and openat2, and in a plugin io_uring, are ENOSYS, so that callers fall back.
//     In a build with cgo a call for files is EPERM and nobody is told.
//   - A kernel that cannot do this is an error that names what is missing; to go on
//     without it takes an explicit argument (Config.Insecure), never a default.
//   - A healthy worker causes no report at all (TestLinuxSoak).
//
// It knows the kernel's mechanisms and the two modes of a worker.
//
// It must not know Wasm, frames, the host or what the worker is for.
package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Mode is what a worker is for; each has its own list.
type Mode string

const (
	// ModeRun reads its files, and opens nothing.
	ModeRun Mode = "run"
	// ModeCompile writes its files, and opens nothing.
	ModeCompile Mode = "compile"
	// ModeCanary is confined like ModeRun, and tries what it may not.
	ModeCanary Mode = "canary"
	// ModePlugin has one directory for its socket, listens there, and becomes another
	// program. See Enter.
	ModePlugin Mode = "plugin"
)

// Config says how a worker confines itself.
type Config struct {
	Mode Mode
	Dir  string // the one directory, absolute
	// Files are names in Dir that the worker has opened when Enter returns, and no others
	// ever: to be read, where a name that is not there is left out, or in ModeCompile
	// made, to be written.
	Files []string
	CPU   time.Duration // processor time, rounded up to seconds; 0 means no limit
	// Memory is how many bytes may be writable and private (RLIMIT_DATA); 0 means no
	// limit. It counts what could be touched, where a control group counts what was.
	Memory int64
	// Parent is the process that must still be the parent; 0 means that it is not
	// checked, as in a PID namespace.
	Parent int
	// Without leaves walls out, by their names in Enforced: a canary looks at one wall
	// alone. Any other mode refuses it.
	Without []string
	// Insecure goes on without what the kernel does not offer. For development only.
	Insecure bool
}

// ErrUnsupported is wrapped when the platform lacks a part of the required minimum.
var ErrUnsupported = errors.New("this platform cannot confine a worker")

// CompileMemory is the address space of a compile worker, in bytes (RLIMIT_AS). A
// run worker has no such limit: engines reserve far more than they use.
const CompileMemory = 4 << 30

// A Confinement is what stands around this process.
type Confinement struct {
	cfg      Config
	files    map[string]*os.File
	enforced []string
	missing  []string
}

// File is one of Config.Files, nil if it is not there. It is the caller's to close.
func (c *Confinement) File(name string) *os.File { return c.files[name] }

// open opens the worker's own files.
func (c *Confinement) open() error {
	flags := os.O_RDONLY
	if c.cfg.Mode == ModeCompile {
		flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	}
	c.files = map[string]*os.File{}
	for _, name := range c.cfg.Files {
		f, err := os.OpenFile(filepath.Join(c.cfg.Dir, name), flags, 0o600)
		if flags == os.O_RDONLY && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("its own file cannot be opened: %w", err)
		}
		c.files[name] = f
	}
	return nil
}

// Enforced lists what stands, such as "no_new_privs", "seccomp", "landlock:7".
func (c *Confinement) Enforced() []string { return append([]string{}, c.enforced...) }

// Missing lists, in sentences, what does not; empty unless Config.Insecure is set.
func (c *Confinement) Missing() []string { return append([]string{}, c.missing...) }
