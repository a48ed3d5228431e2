package throttle

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What receivers say, and the reaction to it; some only after they have said it twice.
var replies = []struct {
	want     string
	host     string
	code     int
	enhanced string
	text     string
}{
	{"google-rate", "gmail-smtp-in.l.google.com", 421, "4.7.28", "Our system has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited. a1-20020a.42 - gsmtp"},
	{"google-unproven", "aspmx.l.google.com", 421, "4.7.26", "This mail has been rate limited because it is unauthenticated. - gsmtp"},
	{"google-suspicious", "aspmx.l.google.com", 421, "4.7.0", "Our system has detected that this message is suspicious due to the nature of the content and/or the links within. - gsmtp"},
	{"google-suspicious", "alt1.aspmx.l.google.com", 421, "4.7.0", "Try again later, closing connection. (EHLO) - gsmtp"},
	{"google-blocked", "aspmx.l.google.com", 550, "5.7.28", "Our system has detected an unusual rate of unsolicited mail. To protect our users from spam, mail from your IP address has been blocked. - gsmtp"},
	{"", "aspmx.l.google.com", 450, "4.2.1", "The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered. - gsmtp"},
	{"", "aspmx.l.google.com", 550, "5.1.1", "The email account that you tried to reach does not exist. - gsmtp"},
	{"microsoft-busy", "example-com.mail.protection.outlook.com", 451, "4.7.500", "Server busy. Please try again later from [192.0.2.1]. (S77714) [AM5EUR03FT.eop-EUR03.prod.protection.outlook.com]"},
	{"microsoft-rate", "outlook-com.olc.protection.outlook.com", 451, "4.7.650", "The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail delivery information, see https://aka.ms/postmaster (S775)"},
	{"microsoft-rate", "outlook-com.olc.protection.outlook.com", 421, "", "RP-001 (SNT004-MC1F1) Unfortunately, some messages from 192.0.2.1 weren't sent."},
	{"microsoft-too-many", "example-com.mail.protection.outlook.com", 421, "4.3.2", "The maximum number of concurrent connections has exceeded a limit, closing transmission channel"},
	{"microsoft-blocked", "hotmail-com.olc.protection.outlook.com", 550, "5.7.1", "Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140)."},
	{"microsoft-blocked", "hotmail-com.olc.protection.outlook.com", 550, "5.7.1", "Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3150)."},
	{"microsoft-banned", "example-com.mail.protection.outlook.com", 550, "5.7.606", "Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/"},
	{"microsoft-banned", "example-com.mail.protection.outlook.com", 550, "5.7.511", "Access denied, banned sender [192.0.2.1]."},
	{"", "example-com.mail.protection.outlook.com", 550, "5.7.509", "Access denied, sending domain example.com does not pass DMARC verification and has a DMARC policy of reject."},
	{"yahoo-volume", "mta5.am0.yahoodns.net", 421, "4.7.0", "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes"},
	{"yahoo-complaints", "mta6.am0.yahoodns.net", 421, "4.7.0", "[TS01] Messages from 192.0.2.1 temporarily deferred due to user complaints - 4.16.55.1"},
	{"yahoo-stop", "mta7.am0.yahoodns.net", 421, "4.7.1", "[TS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed."},
	{"yahoo-volume", "mta7.am0.yahoodns.net", 451, "", "Message temporarily deferred - [160]"},
	{"yahoo-blocked", "mta5.am0.yahoodns.net", 553, "5.7.1", "[BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list"},
	{"", "mta5.am0.yahoodns.net", 421, "4.7.0", "[GL01] Message from (192.0.2.1) temporarily deferred"},
	{"apple-rate", "mx01.mail.icloud.com", 450, "4.7.1", "Too many messages from your address, rate limited"},
	{"apple-blocked", "mx02.mail.icloud.com", 550, "5.7.0", "Blocked - see https://support.apple.com/en-us/HT204137"},
	{"gmx-listed", "mx00.gmx.net", 421, "", "gmx.net (mxgmx115) Nemesis ESMTP Service not available\nService closing transmission channel\nIP address is block listed. For explanation visit https://postmaster.gmx.net/en/case?c=bip&i=ip&v=192.0.2.1"},
	{"gmx-listed", "mx-ha02.web.de", 554, "", "web.de (mxweb111) Nemesis ESMTP Service not available\nNo SMTP service\nIP address is block listed."},
	{"gmx-rate", "mx01.gmx.net", 450, "", "Requested mail action not taken: mailbox unavailable\nMail send limit exceeded."},
	{"comcast-sessions", "mx1.comcast.net", 421, "", "resimta-po-11v.sys.comcast.net resimta 192.0.2.1 Too many sessions opened. RL000001"},
	{"comcast-rate", "mx2.comcast.net", 421, "", "imta32.emeryville.ca.mail.comcast.net comcast Throttled. See https://postmaster.comcast.net/smtp-error-codes.php#RL000010"},
	{"comcast-blocked", "mx1.comcast.net", 554, "", "resimta-po-11v.sys.comcast.net comcast 192.0.2.1 found on one or more DNSBLs, see https://postmaster.comcast.net/smtp-error-codes.php#BL000001"},
	{"orange-rate", "smtp-in.orange.fr", 421, "", "mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]"},
	{"t-online-refused", "mx00.t-online.de", 554, "", "IP=192.0.2.1 - A problem occurred. (Ask your postmaster for help or to contact tosa@rx.t-online.de to clarify.) (BL)"},
	{"proofpoint-blocked", "mx0a-00000001.pphosted.com", 554, "", "Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1"},
	{"mimecast-listed", "eu-smtp-inbound-1.mimecast.com", 451, "", "IP Temporarily Blacklisted - https://community.mimecast.com/docs/DOC-1369#451"},
	{"too-many", "mx.example.net", 421, "4.7.0", "mx.example.net Error: too many connections from 192.0.2.1"},
	{"too-many", "mx.example.net", 450, "4.7.1", "Too many concurrent SMTP connections; please try again later."},
	{"too-fast", "mx.example.net", 421, "4.7.1", "Rate limit exceeded for your host"},
	{"", "mx.example.net", 450, "4.2.0", "Greylisted, see http://postgrey.schweikert.ch/help/example.net.html"},
	{"", "mx.example.net", 451, "4.7.1", "Please try again later, greylisting in action"},
	{"", "mx.example.net", 452, "4.5.3", "Too many recipients"},
}

func TestReactions(t *testing.T) {
	used := make(map[string]bool)
	for i, r := range replies {
		t.Run(fmt.Sprintf("%d %s", r.code, r.text[:min(40, len(r.text))]), func(t *testing.T) {
			rs, err := NewReactions()
			if err != nil {
				t.Fatal(err)
			}
			said := Said{Hosts: []string{r.host}, Code: r.code, Enhanced: r.enhanced, Text: r.text}
			got := ""
			for range 3 {
				if found := rs.Find("path", said); found != nil && got == "" {
					got = found.Name
				}
			}
			if got != r.want {
				t.Errorf("reply %d: got %q, want %q", i, got, r.want)
			}
			used[got] = true
		})
	}
	rules, err := parseReactions(builtIn)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if !used[r.Name] && r.Name != "google-too-many" {
			t.Errorf("no reply shows what %s is for", r.Name)
		}
	}
}

func TestReactionsOfOperatorsComeFirst(t *testing.T) {
	rs, err := NewReactions(Reaction{Name: "mine", Hosts: []string{"example.net"}, Code: "421", Text: "too many", Actions: []Action{ActionSuspend}, For: time.Hour},
		Reaction{Name: "calm", Hosts: []string{"google.com"}, Actions: []Action{ActionNone}})
	if err != nil {
		t.Fatal(err)
	}
	if got := rs.Find("p", Said{Hosts: []string{"mx.example.net"}, Code: 421, Text: "Too many connections"}); got == nil || got.Name != "mine" {
		t.Errorf("got %+v", got)
	}
	if got := rs.Find("p", Said{Hosts: []string{"aspmx.l.google.com"}, Code: 421, Enhanced: "4.7.28", Text: "rate"}); got != nil {
		t.Errorf("got %+v, want none", got)
	}
	for name, bad := range map[string]Reaction{
		"no action": {}, "is none of": {Actions: []Action{"shout"}}, "out of range": {Actions: []Action{ActionSlow}},
		"either": {Actions: []Action{ActionDefer, ActionBounce}}, "text": {Actions: []Action{ActionDefer}, Text: "("},
		"begins": {Actions: []Action{ActionDefer}, Code: "4xx"},
	} {
		if _, err := NewReactions(bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}

func TestReactionsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rs, err := NewReactions(Reaction{Name: "third", Actions: []Action{ActionSlow}, For: time.Hour, After: 3})
		if err != nil {
			t.Fatal(err)
		}
		find := func(path string) bool { return rs.Find(path, Said{Code: 450}) != nil }
		for i, want := range []bool{false, false, true, false} {
			if got := find("a"); got != want {
				t.Errorf("time %d of a path: got %v, want %v", i+1, got, want)
			}
		}
		if find("b") {
			t.Error("another path: want no reaction to the first time")
		}
		time.Sleep(countedFor + time.Second)
		for i, want := range []bool{false, false, true} {
			if got := find("b"); got != want {
				t.Errorf("time %d after what was counted is old: got %v, want %v", i+1, got, want)
			}
		}
		for i := range 3 * maxCounts {
			if find(fmt.Sprint(i)); len(rs.counts) > maxCounts {
				t.Fatalf("%d counts are kept", len(rs.counts))
			}
		}
	})
}
