package main_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestLinuxStartWithoutTheKeyService: nothing is served, nothing is made, and the message
// names the key.
func TestLinuxStartWithoutTheKeyService(t *testing.T) {
	const key = "arn:aws:kms:eu-central-1:111122223333:key/1234"
	d := newDaemon(t, "keys: {kms: \""+key+"\", endpoint: \"http://127.0.0.1:1\"}\n")
	d.env = []string{"AWS_ACCESS_KEY_ID=AK", "AWS_SECRET_ACCESS_KEY=SK", "AWS_MAX_ATTEMPTS=1", "AWS_EC2_METADATA_DISABLED=true"}
	d.launch()
	if err := d.end(); err == nil || !strings.Contains(d.said.String(), "the key service does not open the keyset: "+key) {
		t.Errorf("%v\n%s", err, d.said)
	}
	if list, _ := filepath.Glob(filepath.Join(d.dir, "keyset*")); len(list) != 0 {
		t.Errorf("files %v", list)
	}
}

func TestLinuxRotateKeys(t *testing.T) {
	d := digest(t)
	id := d.once()
	out, status := cli(t, "--home", d.home, "-w", "team", "keys", "rotate")
	if status != 0 || !strings.Contains(out, "sealing keys: 2") {
		t.Fatalf("status %d\n%s", status, out)
	}
	d.kill()
	d.up()
	if v := d.run(id); len(v.Log) == 0 || len(v.Result) == 0 {
		t.Errorf("%+v", v)
	}
	d.once()
	if out, status := d.verify(); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
	// The operator names another way to seal the file than it is sealed by.
	d.stop()
	d.env = []string{"MONROE_KMS=arn:aws:kms:eu-central-1:111122223333:key/1234"}
	d.launch()
	if err := d.end(); err == nil || !strings.Contains(d.said.String(), "monroed --rewrap-keys") {
		t.Errorf("%v\n%s", err, d.said)
	}
}
