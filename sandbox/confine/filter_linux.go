package confine

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A policy is what the kernel does with each system call of the native interface.
// Every other one is a call without a rule; those of x32 are ENOSYS. There are less than
// 256 rules, about calls below numbers.
type policy struct {
	rules []rule
	rest  verdict // of a call for which no rule holds
}

// A rule is about one call, by its number. Of several for one call the first that holds
// counts.
type rule struct {
	call uint32
	then verdict
	when []condition // all of them
}

// A condition looks at an argument, and never at what it points to: another thread
// could change that between the check and the use.
type condition struct {
	argument    uint32 // from 0
	mask, value uint64 // argument & mask == value
}

func equal(argument uint32, v uint64) condition { return condition{argument, ^uint64(0), v} }
func noneOf(argument uint32, bits uint64) condition {
	return condition{argument, bits, 0}
}

// A verdict is what a filter returns.
type verdict uint32

const (
	allow  verdict = unix.SECCOMP_RET_ALLOW
	notify verdict = unix.SECCOMP_RET_USER_NOTIF // the call waits for whoever holds the listener
)

func refuse(e unix.Errno) verdict { return unix.SECCOMP_RET_ERRNO | verdict(e) }

// numbers is more than there are of system calls on either architecture.
const numbers = 512

// assemble writes the program of a policy. It finds the call's number by halves: the
// kernel runs the program for each number there is when it installs it, and for each call
// that has conditions. A block that looks at arguments ends with a verdict or goes on with
// the next rule of the same call, so that nothing ever takes an argument for a number.
//
// Each worker does this when it starts, on memory that was never touched before. So it
// neither sorts nor allocates but for the two arrays below.
func (p policy) assemble() []unix.SockFilter {
	a := assembler{policy: p, code: make([]unix.SockFilter, 0, numbers)}
	a.put(load(4)) // the architecture, in struct seccomp_data
	a.put(jump(unix.BPF_JEQ, architecture, 1, 0))
	a.put(give(p.rest))
	a.put(load(0)) // the number
	a.choose(p.spans())
	return a.code
}

// A span is numbers with one answer, up to the next span.
type span struct {
	from uint32
	// rule is the first of a call, counted from 1; 0 means that there is none.
	rule uint8
	then verdict // where no condition decides
}

// spans covers all numbers.
func (p policy) spans() []span {
	var first [numbers]uint8
	for i := len(p.rules) - 1; i >= 0; i-- {
		first[p.rules[i].call] = uint8(i + 1)
	}
	list := make([]span, 0, numbers/2)
	add := func(s span) { // neighbours with the same answer are one
		if n := len(list); n == 0 || s.rule != 0 || list[n-1].rule != 0 || list[n-1].then != s.then {
			list = append(list, s)
		}
	}
	for n, i := range first {
		switch {
		case i == 0:
			add(span{from: uint32(n), then: p.rest})
		case len(p.rules[i-1].when) == 0:
			add(span{from: uint32(n), then: p.rules[i-1].then})
		default:
			add(span{from: uint32(n), rule: i})
		}
	}
	add(span{from: numbers, then: p.rest})
	if foreign != 0 {
		add(span{from: foreign, then: refuse(unix.ENOSYS)})
	}
	return list
}

// An assembler writes a program.
type assembler struct {
	policy
	code []unix.SockFilter
}

func (a *assembler) put(x unix.SockFilter) { a.code = append(a.code, x) }

// choose finds the span of the number that is loaded.
func (a *assembler) choose(list []span) {
	if len(list) == 1 {
		a.decide(list[0])
		return
	}
	half := len(list) / 2
	a.put(jump(unix.BPF_JGE, list[half].from, 0, 1))
	over := len(a.code)
	a.put(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA})
	a.choose(list[:half])
	a.code[over].K = uint32(len(a.code) - over - 1)
	a.choose(list[half:])
}

// decide answers one span.
func (a *assembler) decide(s span) {
	if s.rule == 0 {
		a.put(give(s.then))
		return
	}
	call := a.rules[s.rule-1].call
	for _, r := range a.rules[s.rule-1:] {
		if r.call != call {
			continue
		}
		a.block(r)
		if len(r.when) == 0 { // it holds
			return
		}
	}
	a.put(give(a.rest))
}

// block gives the verdict of a rule if it holds, and ends otherwise.
func (a *assembler) block(r rule) {
	const arguments = 16 // in struct seccomp_data, 8 bytes each
	begin := len(a.code)
	for _, c := range r.when {
		// Little-endian, as both architectures: the low half comes first.
		a.test(arguments+8*c.argument, uint32(c.mask), uint32(c.value))
		a.test(arguments+8*c.argument+4, uint32(c.mask>>32), uint32(c.value>>32))
	}
	a.put(give(r.then))
	for i := begin; i < len(a.code); i++ {
		if a.code[i].Code&0x07 == unix.BPF_JMP { // where it does not hold, to the end
			a.code[i].Jf = uint8(len(a.code) - 1 - i)
		}
	}
}

// test goes on if one half of an argument, masked, has a value.
func (a *assembler) test(offset, mask, value uint32) {
	if mask == 0 && value == 0 {
		return
	}
	a.put(load(offset))
	if mask != ^uint32(0) {
		a.put(unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	a.put(jump(unix.BPF_JEQ, value, 0, 0))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jump skips so many instructions where the comparison holds, and where it does not.
func jump(comparison uint16, v uint32, holds, not uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | comparison | unix.BPF_K, Jt: holds, Jf: not, K: v}
}

func give(v verdict) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(v)}
}

// install puts a filter on every thread. If it notifies it returns the listener:
// forbidden calls then wait for the answer of whoever holds it, and return ENOSYS
// once nobody does.
func (p policy) install() (listener int, err error) {
	code := p.assemble()
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if p.rest != notify {
		return set(&prog, unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	const listen = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	// WAIT_KILLABLE_RECV (5.19) keeps preemption signals from repeating a report.
	listener, err = set(&prog, listen|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if errors.Is(err, unix.EINVAL) {
		listener, err = set(&prog, listen)
	}
	return listener, err
}

func set(prog *unix.SockFprog, flags uintptr) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}
