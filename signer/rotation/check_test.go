package rotation

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// canned is a Publication that always says the same.
type canned struct {
	answers Answers
	err     error
}

func (c canned) Lookup(ctx context.Context, _ string) (Answers, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		return Answers{}, errors.New("no deadline")
	}
	return c.answers, c.err
}

func TestCheck(t *testing.T) {
	k := keyringtest.NewKey(t, domain, "s1", keyring.RSA)
	ed := keyringtest.NewKey(t, domain, "s2", keyring.Ed25519)
	ours, other := keyring.Record(k), keyring.Record(keyringtest.NewKey(t, domain, "s1", keyring.RSA))
	p := ours[strings.Index(ours, "p="):]
	type says = []string
	for _, c := range []struct {
		name  string
		state keyring.State
		says  says // of ns1
		fault Fault
		want  string
	}{
		{"ours", "", says{ours}, "", ""},
		{"least", "", says{p}, "", ""},
		{"spaces and a last semicolon", "", says{"v=DKIM1 ;\r\n\tk = rsa ; t=s; n=note; x_1=; " + p[:80] + " \t" + p[80:] + " ;"}, "", ""},
		{"several hashes and services", "", says{"h=sha1:sha256; s=tlsrpt : email; " + p}, "", ""},
		{"none", "", nil, FaultMissing, "ns1 has no record: publish the record there"},
		{"empty", "", says{""}, FaultDamaged, "is no list of tags"},
		{"another key", "", says{other}, FaultWrongKey, "has another key in p=: publish exactly"},
		{"another kind", "", says{keyring.Record(ed)}, FaultWrongKey, `has a key of type "ed25519", ours is "rsa"`},
		{"two", "", says{ours, ours}, FaultSeveral, "has 2 records, and verifiers pick any: leave the one"},
		{"revoked", "", says{"v=DKIM1; p="}, FaultRevoked, "says that the key is revoked"},
		{"testing", "", says{ours + "; t=s:y"}, FaultTesting, "is only testing (t=y)"},
		{"other hash", "", says{"h=sha1; " + p}, FaultUnusable, `admits only the hashes ["sha1"]`},
		{"other service", "", says{"s=tlsrpt; " + p}, FaultUnusable, `is for the services ["tlsrpt"]`},
		{"other version", "", says{"v=DKIM2; " + p}, FaultDamaged, "verifiers discard it"},
		{"version not first", "", says{"k=rsa; v=DKIM1; " + p}, FaultDamaged, "verifiers discard it"},
		{"tag twice", "", says{p + "; " + p}, FaultDamaged, "has p= twice"},
		{"no p", "", says{"v=DKIM1; k=rsa"}, FaultDamaged, "has no p="},
		{"cut off", "", says{ours[:len(ours)-5]}, FaultDamaged, "has a damaged p="},
		{"SPF", "", says{"v=spf1 -all"}, FaultDamaged, "has a v="},
		{"quoted by mistake", "", says{`"` + ours + `"`}, FaultDamaged, "is no list of tags"},
		{"revoked as wanted", keyring.Revoked, says{"v=DKIM1; p="}, "", ""},
		{"revoked and gone", keyring.Revoked, nil, "", ""},
		{"not revoked", keyring.Revoked, says{ours}, FaultStillThere, "does not say that the key is revoked: publish v=DKIM1; p="},
		{"removed as wanted", keyring.Removed, nil, "", ""},
		{"not removed", keyring.Removed, says{"v=DKIM1; p="}, FaultStillThere, "still has a record: delete it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := keyring.Entry{Domain: domain, Selector: "s1", Algorithm: keyring.RSA, Record: ours, State: c.state}
			good := says{ours}
			if c.state.Gone() {
				good = nil
			}
			dns := canned{answers: Answers{[]Answer{
				{Server: "ns1", IsAuthoritative: true, Records: c.says, TTL: time.Minute},
				{Server: "r1", Records: good, TTL: time.Hour}, {Server: "r2", Records: good},
			}, time.Second}}
			r := Check(t.Context(), dns, e, 2)
			if r.Name != "s1._domainkey.example.com" || r.TTL != time.Hour || r.NegativeTTL != time.Second || r.Authoritative != 1 || r.Resolvers != 2 {
				t.Errorf("got %+v", r)
			}
			if c.fault == "" {
				if !r.OK() || !strings.Contains(r.String(), "as it should be at 1 authoritative servers and 2 resolvers") {
					t.Errorf("got %s, want nothing wrong", r.String())
				}
				return
			}
			if len(r.Problems) != 1 || r.Problems[0].Fault != c.fault || !r.Is(c.fault) || !strings.Contains(r.String(), c.want) || r.Problems[0].Server != "ns1" {
				t.Errorf("got %s, want %s at ns1 with %q", r.String(), c.fault, c.want)
			}
		})
	}
}

func TestCheckServers(t *testing.T) {
	k := keyringtest.NewKey(t, domain, "s1", keyring.Ed25519)
	ours := []string{keyring.Record(k)}
	ns := Answer{Server: "ns1", IsAuthoritative: true, Records: ours}
	r1, r2 := Answer{Server: "r1", Records: ours}, Answer{Server: "r2", Records: ours}
	old := Answer{Server: "r3", Records: []string{"v=DKIM1; p="}}
	none, dead := Answer{Server: "r4"}, Answer{Server: "ns2", IsAuthoritative: true, Err: errors.New("refused")}
	for _, c := range []struct {
		name    string
		answers []Answer
		err     error
		want    []string
	}{
		{"good", []Answer{ns, r1, r2}, nil, nil},
		{"one resolver", []Answer{ns, r1}, nil, []string{"1 resolvers were asked, want 2: configure more resolvers that are independent of each other"}},
		{"no authority", []Answer{r1, r2}, nil, []string{"no authoritative server was asked: look whether the zone is delegated"}},
		{"no delegation", nil, errors.New("NXDOMAIN"), []string{"the servers to ask could not be found: NXDOMAIN: repair the zone or the network, and check again"}},
		{"each must agree", []Answer{ns, dead, r1, r2, old, none}, nil, []string{
			"ns2 gave no answer (refused): repair it, or take its NS record out of the zone, and check again; --accept-dead ns2 goes on without it this once",
			"r3 has a record that says that the key is revoked (empty p=): publish exactly the record of this key; if the authoritative servers have it, wait until the old one is forgotten",
			"r4 has no record: it may remember that there was none: wait, after it is on all authoritative servers",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := keyring.Entry{Domain: domain, Selector: "s1", Algorithm: keyring.Ed25519, Record: ours[0], State: keyring.Active}
			r := Check(t.Context(), canned{Answers{c.answers, 0}, c.err}, e, 2)
			var got []string
			for _, p := range r.Problems {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerifies(t *testing.T) {
	for _, a := range []keyring.Algorithm{keyring.RSA, keyring.Ed25519} {
		k, other := keyringtest.NewKey(t, domain, "s1", a), keyringtest.NewKey(t, domain, "s1", a)
		if err := verifies(k, keyring.Record(k)); err != nil {
			t.Errorf("%s: got %v", a, err)
		}
		for _, text := range []string{keyring.Record(other), "v=DKIM1; p=", "x", "v=DKIM1; k=ed25519; p=AAAA", "v=DKIM1; p=AAAA"} {
			if err := verifies(k, text); err == nil {
				t.Errorf("%s with record %q: got no error", a, text)
			}
		}
	}
}

// FuzzRecord reads what a zone may hold. A record that is like ours must hold
// our key whatever else stands in it.
func FuzzRecord(f *testing.F) {
	ours := record{kind: "ed25519", public: []byte("12345678901234567890123456789012")}
	for _, seed := range []string{
		"v=DKIM1; k=ed25519; p=MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=", "p=", "v=DKIM1; h=sha256:; s=*; t=y:s; p=AA==;", ";", "=", "a=b=c;;", "p = \r\n A A = = ",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRecord(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("got an error of several lines: %q", err)
			}
			return
		}
		if fault, text := r.differs(&ours); (fault == "") != (text == "") {
			t.Errorf("got %q and %q", fault, text)
		} else if fault == "" && (string(r.public) != string(ours.public) || r.kind != ours.kind) {
			t.Errorf("%+v passes for ours", r)
		}
	})
}
