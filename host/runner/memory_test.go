package runner_test

import (
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
)

// A worker cannot ask for an answer again that it has. So nothing of it stays in the
// daemon while the run goes on, however many calls it makes.
func TestALiveRunKeepsNoneOfItsAnswers(t *testing.T) {
	const most, commit = 100, 257 // bytes of a call; calls of a commit
	kept := func(c net.Conn, first, calls uint32) int64 {
		before := heap()
		for n := first; n < first+calls; n++ {
			call(c, n, `{"op":"random.bytes","v":1,"args":{"n":1000}}`)
		}
		return (heap() - before) / int64(calls)
	}
	var live int64
	s := &fakeSpawner{scripts: []script{func(c net.Conn) {
		open(c)
		kept(c, 1, 2*commit) // what grows once has grown
		live = kept(c, 2*commit+1, 10*commit)
		done(c)
	}}}
	b := newBench(t, s)
	b.push(t, strings.NewReplacer(`"calls":5`, `"calls":5000`, `"time.sleep"`, `"random.bytes"`).Replace(manifest))
	if v := b.result(t); v.State != host.StateSucceeded {
		t.Fatal(v.State, v.Failure)
	}
	if live > most {
		t.Errorf("a live call leaves %d bytes", live)
	}
	t.Logf("a live call leaves %d bytes", live)
}

func heap() int64 {
	for range 3 { // pools keep what they hold for two
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
