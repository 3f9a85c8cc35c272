package confine

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A call as a filter sees it: struct seccomp_data without the address, which no rule of
// ours looks at.
type call struct {
	number, architecture uint32
	arguments            [6]uint64
}

// answer is what a policy says by going through its rules, one after the other.
func (p policy) answer(c call) verdict {
	if c.architecture != architecture {
		return p.rest
	}
	if foreign != 0 && c.number >= foreign {
		return refuse(unix.ENOSYS)
	}
next:
	for _, r := range p.rules {
		if r.call != c.number {
			continue
		}
		for _, w := range r.when {
			if c.arguments[w.argument]&w.mask != w.value {
				continue next
			}
		}
		return r.then
	}
	return p.rest
}

// interpreter runs the program of a policy as packet filters are run: what it loads is
// big-endian there, so that each word of the data is written that way.
func interpreter(t *testing.T, p policy) func(call) verdict {
	t.Helper()
	code := p.assemble()
	raw := make([]bpf.RawInstruction, len(code))
	for i, x := range code {
		raw[i] = bpf.RawInstruction{Op: x.Code, Jt: x.Jt, Jf: x.Jf, K: x.K}
	}
	instructions, known := bpf.Disassemble(raw)
	vm, err := bpf.NewVM(instructions)
	if err != nil || !known || len(code) > 4096 {
		t.Fatalf("not a program, %v, of %d instructions: %v", known, len(code), err)
	}
	return func(c call) verdict {
		words := []uint32{c.number, c.architecture, 0, 0}
		for _, a := range c.arguments {
			words = append(words, uint32(a), uint32(a>>32))
		}
		var data []byte
		for _, w := range words {
			data = binary.BigEndian.AppendUint32(data, w)
		}
		v, err := vm.Run(data)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		return verdict(v)
	}
}

// TestFilterIsItsTable runs the programs for every number that there is and for many that
// there are not, with arguments on both sides of each condition.
func TestFilterIsItsTable(t *testing.T) {
	tables := map[string]policy{
		"run": allowed(ModeRun), "compile": allowed(ModeCompile), "canary": allowed(ModeCanary), "plugin": allowed(ModePlugin),
		"after the hand-over": without(unix.SYS_SENDMSG, unix.SYS_PRCTL, unix.SYS_SECCOMP),
		"empty":               {rest: notify}, "the first and the last number": without(0, numbers-1),
	}
	for name, p := range tables {
		t.Run(name, func(t *testing.T) { compare(t, p, rand.New(rand.NewPCG(1, 1))) }) //nolint:gosec // repeatable
	}
	t.Run("made up", func(t *testing.T) {
		for seed := range uint64(60) {
			r := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // repeatable
			compare(t, madeUp(r), r)
		}
	})
}

// madeUp has the same call in several rules, and neighbours with the same verdict.
func madeUp(r *rand.Rand) (p policy) {
	verdicts := []verdict{allow, notify, refuse(unix.EPERM), unix.SECCOMP_RET_KILL_THREAD}
	p.rest = verdicts[r.IntN(4)]
	for range r.IntN(200) {
		x := rule{call: uint32(r.IntN(400)), then: verdicts[r.IntN(4)]}
		for range r.IntN(4) {
			mask := []uint64{^uint64(0), 1 << r.IntN(64), r.Uint64(), 0}[r.IntN(4)]
			x.when = append(x.when, condition{uint32(r.IntN(6)), mask, mask & r.Uint64()})
		}
		p.rules = append(p.rules, x)
	}
	return p
}

func compare(t *testing.T, p policy, r *rand.Rand) {
	run := interpreter(t, p)
	check := func(c call) {
		if got, want := run(c), p.answer(c); got != want {
			t.Errorf("%+v: %#x, want %#x", c, uint32(got), uint32(want))
		}
	}
	var interesting []uint64 // arguments: each condition's value, and that with one bit changed
	for _, x := range p.rules {
		for _, w := range x.when {
			interesting = append(interesting, w.value, w.value^1<<r.IntN(64), ^w.mask|w.value, uint64(x.call))
		}
	}
	numbers := []uint32{1 << 31, ^uint32(0), ^uint32(0) - 1}
	for n := range uint32(1025) {
		numbers = append(numbers, n, 1<<30+n, 1<<30-1-n)
	}
	for _, n := range numbers {
		for _, other := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_AARCH64, 0, ^uint32(0)} {
			check(call{number: n, architecture: other})
		}
		for range 8 {
			c := call{number: n, architecture: architecture}
			for i := range c.arguments {
				if len(interesting) > 0 && r.IntN(4) > 0 {
					c.arguments[i] = interesting[r.IntN(len(interesting))]
				} else {
					c.arguments[i] = r.Uint64()
				}
			}
			check(c)
		}
	}
	for _, x := range p.rules { // each rule alone holds, or misses by one bit
		for range 16 {
			c := call{number: x.call, architecture: architecture}
			for i := range c.arguments {
				c.arguments[i] = r.Uint64()
			}
			for _, w := range x.when {
				c.arguments[w.argument] = c.arguments[w.argument]&^w.mask | w.value
			}
			check(c)
			c.arguments[r.IntN(6)] ^= 1 << r.IntN(64)
			check(c)
			for _, w := range x.when {
				c.arguments[w.argument] ^= 1 << r.IntN(64)
				check(c)
			}
		}
	}
}
